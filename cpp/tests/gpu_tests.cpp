// Engines on a GPU, which is a fake one: what is asked of the driver, and what becomes of its refusals.
#include <algorithm>
#include <numeric>
#include <thread>

#include "checks.hpp"
#include "cuda_driver.hpp"
#include "fake_cuda.hpp"
#include "rescompile/rescompile.hpp"
#include "sample_plan.hpp"

using namespace rescompile;
using namespace rescompile::testing;

namespace {

using Lines = std::vector<std::string>;

std::vector<float> some_images(std::size_t count, float first = 0.5F) {
  std::vector<float> images(count * image_size);
  std::iota(images.begin(), images.end(), first);
  return images;
}

bool answers_are_right(const Result<Logits>& logits, const std::vector<float>& images) {
  if (!logits) return false;
  for (std::size_t index = 0; index < logits->images(); ++index)
    if (!std::ranges::equal((*logits)[index], answer(&images[index * image_size]))) return false;
  return logits->images() * image_size == images.size();
}

Result<Logits> infer(const Engine& engine, const std::vector<float>& images) {
  return engine.infer(std::span<const float>(images), images.size() / image_size);
}

/// A good engine of its own directory; the driver has not been used before.
struct Sample {
  explicit Sample(const std::map<std::string, std::string>& files = plan_files()) {
    reset_fake_cuda();
    write_plan_engine(directory.path(), files);
  }

  [[nodiscard]] Result<Engine> load(bool verify = true) const {
    LoadOptions options;
    options.verify = verify;
    return Engine::load(directory.path(), options);
  }

  TemporaryDirectory directory;
};

/// What was logged since the last call, of lines that begin with one of `starts`.
Lines take_log(const Lines& starts) {
  Lines found;
  for (const std::string& line : std::exchange(fake_cuda().log, {}))
    if (std::ranges::any_of(starts, [&](const std::string& start) { return line.starts_with(start); }))
      found.push_back(line);
  return found;
}

bool says(const Error& error, ErrorCode code, const std::string& words) {
  const bool good = error.code == code && error.message.find(words) != std::string::npos;
  if (!good) std::printf("said %d: %s\n", static_cast<int>(error.code), error.message.c_str());
  return good;
}

}  // namespace

TEST(an_engine_proves_itself_and_answers_any_count) {
  const Sample sample;
  {
    const auto engine = sample.load();
    CHECK(engine && engine->concurrency() == 1);
    for (std::size_t count = 1; count <= 9; ++count) {
      const auto images = some_images(count, static_cast<float>(count));
      CHECK(answers_are_right(infer(*engine, images), images));
    }
  }
  CHECK(fake_cuda().nothing_is_left());
}

TEST(launches_are_those_of_the_plan) {
  const Sample sample;
  const auto engine = sample.load(false);
  CHECK(take_log({"allocate", "module"}) ==
        (Lines{"allocate 256", "allocate 256", "allocate 1024", "allocate 512", "module"}));
  CHECK(infer(*engine, some_images(3)));
  // images, logits, arena and weights are allocations 0 to 3; the scratch pointers are null
  const std::string sums = "sum_kernel 4x1x1 64 1024 <0+0><2+512><3+256>[12][1073741824][0][0][0][0]";
  const std::string head = "head_kernel 4x1x1 32 65536 <2+512><0+0><1+0>[12][0]";
  CHECK(take_log({""}) == (Lines{"upload 144", "launch " + sums, "launch " + head, "begin", "capture " + sums,
                                 "capture " + head, "end", "graph of 2", "download 36", "synchronize"}));
}

TEST(a_program_is_captured_once_and_launched_often) {
  const Sample sample;
  const auto engine = sample.load(false);
  for (const std::size_t count : {3, 1, 2, 4, 1}) CHECK(infer(*engine, some_images(count)));
  // programs take 1 and 4 images: two graphs, the larger one also for 2 and 3
  CHECK(take_log({"begin", "graph"}) ==
        (Lines{"begin", "graph of 2", "begin", "graph of 2", "graph of 2", "graph of 2", "graph of 2"}));
  CHECK(fake_cuda().graphs.empty() && fake_cuda().executables.size() == 2);
}

TEST(earlier_images_do_not_change_an_answer) {
  const Sample sample;
  const auto engine = sample.load(false);
  CHECK(infer(*engine, some_images(4, -50)));
  const auto images = some_images(2);
  CHECK(answers_are_right(infer(*engine, images), images));
}

TEST(memory_is_taken_once_and_zeroed) {
  const Sample sample;
  const auto engine = sample.load(false);
  const auto bytes_at = [](std::uintptr_t address, std::size_t count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(address);
    return std::vector<int>(bytes, bytes + count);
  };
  std::map<std::size_t, std::uintptr_t> places;
  for (const auto& [address, made] : fake_cuda().memory) places[made.number] = address;
  CHECK(bytes_at(places[2], 1024) == std::vector<int>(1024, 0));
  // the weights by name, each on a multiple of 256, with nothing in between
  CHECK(bytes_at(places[3], 4) == (std::vector<int>{1, 2, 3, 0}));
  CHECK(bytes_at(places[3] + 256, 4) == (std::vector<int>{0, 0, 0, 0x3f}));
  for (const std::size_t count : {1, 4, 9}) CHECK(infer(*engine, some_images(count)));
  CHECK(fake_cuda().allocations == 4);
}

TEST(each_refusal_of_the_driver_is_one_sentence_and_leaves_nothing) {
  const Sample sample;
  std::size_t calls = 0;
  const auto use = [&]() -> std::optional<Error> {
    const auto engine = sample.load(false);
    if (!engine) return engine.error();
    for (const std::size_t count : {1, 4}) {
      const auto logits = infer(*engine, some_images(count));
      if (!logits) return logits.error();
    }
    calls = fake_cuda().calls;  // those of the destructor, which may not fail, come behind
    return std::nullopt;
  };
  CHECK(!use() && calls > 40);
  std::set<std::string> failed;
  for (std::size_t call = 1; call <= calls; ++call) {
    reset_fake_cuda();
    fake_cuda().failing_call = call;
    const auto error = use();
    failed.insert(fake_cuda().failed);
    const bool known = error && (error->code == ErrorCode::backend || error->code == ErrorCode::unavailable);
    CHECK(known && error->message.find("error 700") != std::string::npos);
    CHECK(known && error->message.find('\n') == std::string::npos && fake_cuda().nothing_is_left());
  }
  CHECK(failed.size() == 22);
}

TEST(an_engine_goes_on_after_a_refusal) {
  const Sample sample;
  const auto engine = sample.load(false);
  const auto images = some_images(3);
  for (const char* name : {"cuLaunchKernel", "cuStreamBeginCapture_v2", "cuStreamEndCapture",
                           "cuGraphInstantiateWithFlags", "cuGraphLaunch", "cuMemcpyDtoHAsync_v2"}) {
    fake_cuda().failing_name = name;
    CHECK(says(infer(*engine, images).error(), ErrorCode::backend,
               std::string("the CUDA driver cannot run this engine: error 700 (") + name + ", error 700)"));
    CHECK(fake_cuda().graphs.empty() && take_log({"synchronize"}).size() == 1);
  }
  CHECK(answers_are_right(infer(*engine, images), images));
}

TEST(a_machine_without_the_gpu_says_what_it_needs) {
  const Sample sample;
  fake_cuda().devices = 0;
  CHECK(says(sample.load().error(), ErrorCode::unavailable,
             "cannot run here: it needs a CUDA GPU (sm_90), and its CUDA driver shows none"));
  fake_cuda().without_gpu = 100;
  CHECK(says(sample.load().error(), ErrorCode::unavailable, "shows none (no CUDA-capable device is detected)"));
  reset_fake_cuda();
  fake_cuda().major = 8;
  fake_cuda().minor = 6;
  CHECK(says(sample.load().error(), ErrorCode::unavailable,
             "cannot run here: it is for sm_90, and Fake GPU is sm_86; build it for this GPU"));
  CHECK(fake_cuda().nothing_is_left());
}

TEST(a_machine_without_a_driver_says_so) {
  const auto words = [](const char* path) -> std::string {
    try {
      const internal::CudaDriver driver(path);
    } catch (const internal::Failure& failure) {
      return failure.error().code == ErrorCode::unavailable ? failure.what() : "another code";
    }
    return "it was loaded";
  };
  CHECK(words("/nowhere/libcuda.so.1").starts_with("this machine has no CUDA driver (/nowhere/libcuda.so.1: "));
  CHECK(words("libm.so.6") == "its CUDA driver is too old (it has no cuGetErrorString; that of CUDA 11.4 has)");
}

TEST(too_little_memory_is_said_and_given_back) {
  const Sample sample;
  fake_cuda().room = 1000;
  CHECK(says(sample.load().error(), ErrorCode::backend, "cannot run this engine: out of memory (cuMemAlloc_v2"));
  CHECK(fake_cuda().nothing_is_left());
}

TEST(machine_code_is_looked_at_before_the_driver_is_asked) {
  const std::map<std::string, std::string> cases = {
      {"", "sums.cubin holds no machine code for a GPU"},
      {std::string("\x7f" "ELF", 4), "sums.cubin holds no machine code for a GPU"},
      {std::string(100, 'x'), "sums.cubin holds no machine code for a GPU"},
      {machine_code("garbage"), "cannot run this engine: device kernel image is invalid (cuModuleLoadData"}};
  for (const auto& [code, words] : cases) {
    auto files = plan_files();
    files["sums.cubin"] = code;
    const Sample sample(files);
    const auto engine = sample.load();
    CHECK(!engine && engine.error().message.find(words) != std::string::npos && fake_cuda().nothing_is_left());
  }
}

TEST(an_entry_that_is_not_there_is_named_by_the_driver) {
  auto files = plan_files();
  files["plan.json"] = replaced(plan_text(), "\"head_kernel\"", "\"missing\"");
  CHECK(says(Sample(files).load().error(), ErrorCode::backend, "named symbol not found (cuModuleGetFunction"));
}

TEST(wrong_kernels_do_not_pass_the_self_test) {
  auto files = plan_files();
  files["plan.json"] = replaced(plan_text(), "12, 2]", "12, 2.5]");
  CHECK(says(Sample(files).load().error(), ErrorCode::engine, "does not reproduce its golden answers"));
}

TEST(threads_take_turns) {
  const Sample sample;
  const auto engine = sample.load(false);
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (std::size_t thread = 0; thread < 4; ++thread)
      threads.emplace_back([&, thread] {
        const auto images = some_images(thread + 1, static_cast<float>(thread));
        for (int turn = 0; turn < 50; ++turn)
          if (!answers_are_right(infer(*engine, images), images)) ++wrong;
      });
  }
  CHECK(wrong == 0);
}

int main(int count, char** arguments) { return run_all(count, arguments); }
