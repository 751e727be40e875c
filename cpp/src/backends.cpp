#include "backend.hpp"

#include "triton_backend.hpp"
#ifdef RESCOMPILE_WITH_OPENVINO
#include "openvino_backend.hpp"
#endif
#ifdef RESCOMPILE_WITH_TENSORRT
#include "tensorrt_backend.hpp"
#endif

namespace rescompile {

namespace internal {

const std::vector<NamedBackend>& all_backends() {
  static const std::vector<NamedBackend> backends = {
#ifdef RESCOMPILE_WITH_OPENVINO
      {"openvino", load_openvino},
#endif
#ifdef RESCOMPILE_WITH_TENSORRT
      {tensorrt_name, load_tensorrt},
#endif
      {"triton", load_triton},
  };
  return backends;
}

}  // namespace internal

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const auto& backend : internal::all_backends()) names.emplace_back(backend.name);
  return names;
}

}  // namespace rescompile
