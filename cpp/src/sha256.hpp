#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace rescompile::internal {

/// SHA-256 over what is fed to it; OpenSSL computes it.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(std::string_view bytes);

  /// 64 hexadecimal digits; empty where OpenSSL refuses SHA-256. Nothing may be fed afterwards.
  std::string hex_digest();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

/// The digest of `bytes`.
std::string sha256_of(std::string_view bytes);

}  // namespace rescompile::internal
