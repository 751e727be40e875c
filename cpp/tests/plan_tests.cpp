// plan.json and weights.safetensors, good and bad; no GPU is asked for anything.
#include <optional>

#include "checks.hpp"
#include "manifest_reader.hpp"
#include "sample_plan.hpp"
#include "triton_plan.hpp"
#include "triton_weights.hpp"

using namespace rescompile;
using namespace rescompile::testing;

namespace {

Manifest manifest_of(const std::map<std::string, std::string>& files = plan_files()) {
  return *internal::parse_manifest(plan_manifest(files), "m");
}

Result<internal::Plan> parsed(const std::string& text) {
  return internal::parse_plan(text, "plan.json", manifest_of());
}

Result<internal::PlanWeights> weights(const std::string& file) {
  return internal::PlanWeights::parse(file, "weights.safetensors", *parsed(plan_text()));
}

/// What is said of the good plan with `from` as `to`.
std::string said(const std::string& from, const std::string& to) {
  const auto plan = parsed(replaced(plan_text(), from, to));
  return plan ? "nothing" : plan.error().message;
}

struct Case {
  const char *from, *to, *words;
};

bool all_are_refused(const std::vector<Case>& cases) {
  bool good = true;
  for (const auto& [from, to, words] : cases)
    if (const std::string found = said(from, to); found.find(words) == std::string::npos) {
      std::printf("%s -> %s: %s\n", from, to, found.c_str());
      good = false;
    }
  return good;
}

}  // namespace

TEST(a_plan_is_what_was_written) {
  const auto plan = parsed(plan_text());
  CHECK(plan && plan->kernels.size() == 2 && plan->programs.size() == 2 && plan->steps == 2);
  CHECK(plan->image.bytes == 48 && plan->weights.at("fc.bias").bytes == 3 && plan->arena_bytes() == 1024);
  const std::array<std::size_t, 6> expected = {1, 1, 4, 4, 4, 4};
  for (std::size_t count = 0; count < expected.size(); ++count)
    CHECK(plan->program_for(count).batch == expected[count]);
}

TEST(fields_of_the_wrong_kind_are_named) {
  CHECK(all_are_refused({
      {"\"format\": 2", "\"format\": 3", "has format 3, this librescompile reads format 2 and older"},
      {"\"format\": 2", "\"format\": 0", "has format 0, this librescompile reads format 2 and older"},
      {"\"format\": 2, ", "", "`$.format` is missing"},
      {"\"format\": 2", "\"format\": 2, \"more\": 1", "`$.more` is a field that this version does not know"},
      {"\"classes\": 3", "\"classes\": \"3\"", "`$.classes` must be a whole number"},
      {"\"int8\"", "\"int4\"", "`$.weights[\"fc.bias\"].dtype` must be one of int8"},
      {"[3]", "[-3]", "`$.weights[\"fc.bias\"]` has a shape whose size is absurd"},
      {"[3]", "[1099511627776, 1099511627776]", "has a shape whose size is absurd"},
      {"\"steps\": [", "\"steps\": [1, ", "`$.steps` must be a list of objects"},
      {"\"kernels\": [", "\"kernels\": 5, \"was\": [", "`$.kernels` must be a list"},
      {"\"weights\": {\"fc", "\"weights\": [], \"was\": {\"fc", "`$.weights` must be an object"},
      {"\"programs\": [", "\"programs\": {}, \"was\": [", "`$.programs` must be a list of one or more"},
      {"\"launches\": [", "\"launches\": 1, \"was\": [", "`$.programs[0].launches` must be a list"},
      {"\"scratch\": 2,", "\"scratch\": 2, \"function\": \"f\",", "`$.kernels[0].function` is a field that this version"},
      {"\"format\": 2", "\"format\": 1", "`$.kernels[0].function` is missing"},
  }));
}

TEST(a_plan_of_format_1_is_read) {
  std::string text = replaced(plan_text(), "\"format\": 2", "\"format\": 1");
  for (const char* entry : {"\"sum_kernel\"", "\"head_kernel\""})
    text = replaced(text, entry, std::string(entry) + R"(, "function": "sample.kernel", "source": {})");
  const auto plan = parsed(text);
  CHECK(plan && plan->kernels.size() == 2 && plan->programs.size() == 2);
  const auto spoilt = parsed(replaced(text, "\"source\": {}", "\"source\": 1"));
  CHECK(!spoilt && spoilt.error().message.find("`$.kernels[0].source` must be an object") != std::string::npos);
}

TEST(kernels_that_no_gpu_has_are_refused) {
  CHECK(all_are_refused({
      {"\"threads\": 64", "\"threads\": 2048", "`$.kernels[0].threads` must be a whole number from 32 to 1024"},
      {"\"threads\": 64", "\"threads\": 65", "`$.kernels[0].threads` must be a multiple of 32"},
      {"\"shared_bytes\": 1024", "\"shared_bytes\": 2097152", "`$.kernels[0].shared_bytes` must be"},
      {"\"scratch\": 2", "\"scratch\": 9", "`$.kernels[0].scratch` must be"},
      {"\"i64\"", "\"i65\"", "`$.kernels[1].parameters` has the unknown kind \"i65\""},
      {"\"sums.cubin\"", "\"../sums.cubin\"", "not a file of machine code in this directory"},
      {"\"sums.cubin\"", "\"sums.so\"", "not a file of machine code in this directory"},
      {"\"sums.cubin\"", "\"other.cubin\"", "the manifest lists no \"other.cubin\""},
      {"\"grid\": [1, 1, 1]", "\"grid\": [1, 1]", "launches[0].grid` must be three sizes"},
      {"\"grid\": [1, 1, 1]", "\"grid\": [0, 1, 1]", "launches[0].grid` must be three sizes"},
      {"\"grid\": [1, 1, 1]", "\"grid\": [1, 65536, 1]", "launches[0].grid` must be three sizes"},
      {"\"grid\": [1, 1, 1]", "\"grid\": [1, 1, 65536]", "launches[0].grid` must be three sizes"},
      {"\"kernel\": 1", "\"kernel\": 2", "launches[1].kernel` must be a whole number from 0 to 1"},
      {"\"step\": 1", "\"step\": 2", "launches[1].step` must be a whole number from 0 to 1"},
  }));
}

TEST(arguments_that_leave_their_memory_are_refused) {
  CHECK(all_are_refused({
      {"\"offset\": 256, \"bytes\": 4", "\"offset\": 512, \"bytes\": 4", "lies at 512 + 4 of an arena of 512 bytes"},
      {"\"offset\": 256, \"bytes\": 4", "\"offset\": 256, \"bytes\": 257", "lies at 256 + 257 of an arena of 512"},
      {"\"offset\": 256, \"bytes\": 4", "\"offset\": 8, \"bytes\": 4", "(addresses are multiples of 256)"},
      {"\"offset\": 256", "\"offset\": -256", "arguments[1].offset` must be a whole number"},
      {"\"offset\": 256", "\"offset\": 18446744073709551615", "arguments[1].offset` must be a whole number"},
      {"\"arena_bytes\": 512", "\"arena_bytes\": 274877906945", "`$.programs[0].arena_bytes` must be"},
      {"\"name\": \"stem.weight\"", "\"name\": \"other\"", "is the weight \"other\", which the plan does not list"},
      {"{\"in\": \"logits\"}", "{\"in\": \"stack\"}", "must be one of arena weights images logits"},
      {"{\"in\": \"logits\"}", "{\"in\": \"logits\", \"x\": 1}", "is a field that this version does not know"},
      {"{\"in\": \"logits\"}", "7", "launches[1].arguments[2]` must be an object"},
      {"12, 2.0]", "{\"in\": \"images\"}, 2.0]", "arguments[3]` must be a number"},
      {"12, 2.0]", "2147483648, 2.0]", "arguments[3]` must be a whole number of 32 bits"},
      {"12, 2.0]", "1.5, 2.0]", "arguments[3]` must be a whole number of 32 bits"},
      {"12, 2.0]", "12, 1e39]", "arguments[4]` must be a number that float32 holds"},
      {"12, 2.0]", "12]", "launches[0].arguments` must be a list of 5 arguments"},
      {"12, 2.0]", "12, 2.0, 3]", "launches[0].arguments` must be a list of 5 arguments"},
      {"12]}]},", "9223372036854775808]}]},", "arguments[3]` must be a whole number of 64 bits"},
  }));
}

TEST(a_plan_of_another_engine_is_refused) {
  CHECK(all_are_refused({
      {"\"shape\": [3, 2, 2]", "\"shape\": [3, 2, 3]", "it takes other images than the manifest says"},
      {"\"dtype\": \"float32\", \"shape\": [3, 2, 2]", "\"dtype\": \"uint8\", \"shape\": [3, 2, 2]", "other images"},
      {"\"classes\": 3", "\"classes\": 4", "it is an fp32 network of 4 classes, the manifest describes another"},
      {"\"fp32\"", "\"int8\"", "it is an int8 network of 3 classes, the manifest describes another"},
      {"sm_90", "sm_89", "it is for \"sm_89\", the manifest says sm_90"},
      {"\"batch\": 4", "\"batch\": 8", "it takes batches of 1 to 8, the manifest says 1 to 4"},
      {"\"batch\": 4", "\"batch\": 1", "`$.programs` take batches that do not ascend"},
  }));
  for (const char* name : {"plan.json", "weights.safetensors"}) {
    auto files = plan_files();
    files.erase(name);
    const auto plan = internal::read_plan(internal::EngineFiles("d"), manifest_of(files));
    CHECK(!plan && plan.error().message.find(std::string("lists no ") + name) != std::string::npos);
  }
}

TEST(a_plan_cut_anywhere_is_an_error_and_flipped_no_crash) {
  const std::string text = plan_text();
  constexpr std::size_t stride = 5;  // every place takes seconds under sanitizers
  for (std::size_t size = 0; size + 2 < text.size(); size += stride) CHECK(!parsed(text.substr(0, size)));
  for (std::size_t place = 0; place < text.size(); place += stride) {
    std::string flipped = text;
    flipped[place] = static_cast<char>(flipped[place] ^ 1);
    const auto plan = parsed(flipped);
    CHECK(plan || !plan.error().message.empty());
  }
}

TEST(weights_are_those_of_the_plan) {
  const auto good = weights(plan_weights());
  CHECK(good && good->packed_bytes() == 512 && (*good)["fc.bias"] == "\1\2\3");
  CHECK(good->offsets() == (std::map<std::string, std::uint64_t>{{"fc.bias", 0}, {"stem.weight", 256}}));
  const std::string file = plan_weights();
  for (std::size_t size = 0; size < file.size(); ++size) CHECK(!weights(file.substr(0, size)));
}

TEST(tables_of_int32_are_taken) {
  const std::string text = replaced(plan_text(), "\"int8\"", "\"int32\"");
  const auto plan = parsed(replaced(text, "\"*fp32\", \"i64\"", "\"*i32\", \"i64\""));
  CHECK(plan && plan->weights.at("fc.bias").bytes == 12);
  const std::string file = safetensors(R"({"stem.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "fc.bias": {"dtype": "I32", "shape": [3], "data_offsets": [4, 16]}})", "0123456789abcdef");
  const auto good = internal::PlanWeights::parse(file, "weights.safetensors", *plan);
  CHECK(good && (*good)["fc.bias"] == "456789abcdef");
  CHECK(!internal::PlanWeights::parse(file, "weights.safetensors", *parsed(plan_text())));
}

TEST(weights_that_lie_elsewhere_are_refused) {
  const std::string data = "1234567", one = R"("stem.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})";
  const auto with = [&](const std::string& bias) { return safetensors("{" + one + ", " + bias + "}", data); };
  const std::map<std::string, std::string> cases = {
      {with(R"("x": {"dtype": "I8", "shape": [3], "data_offsets": [4, 7]})"), "\"fc.bias\" is missing, not int8 [3]"},
      {with(R"("fc.bias": {"dtype": "F32", "shape": [3], "data_offsets": [4, 7]})"),
       "is float32 [3] of 3 bytes, not int8 [3]"},
      {with(R"("fc.bias": {"dtype": "BF16", "shape": [3], "data_offsets": [4, 7]})"), "is BF16 [3] of 3 bytes"},
      {with(R"("fc.bias": {"dtype": "I8", "shape": [1, 3], "data_offsets": [4, 7]})"), "is int8 [1, 3]"},
      {with(R"("fc.bias": {"dtype": "I8", "shape": [3], "data_offsets": [4, 6]})"), "is int8 [3] of 2 bytes"},
      {with(R"("fc.bias": {"dtype": "I8", "shape": [3], "data_offsets": [4, 8]})"), "must be a range of the file"},
      {with(R"("fc.bias": {"dtype": "I8", "shape": [3], "data_offsets": [7, 4]})"), "must be a range of the file"},
      {with(R"("fc.bias": {"dtype": "I8", "shape": [3], "data_offsets": [-3, 0]})"), "must be a range of the file"},
      {with(R"("fc.bias": {"dtype": "I8", "shape": [3]})"), "data_offsets` is missing"},
      {with(R"("fc.bias": 5)"), "must be an object"},
      {safetensors("[]", data), "its header is not a JSON object"},
      {safetensors("{", data), "its header is not a JSON object"},
      {std::string(8, '\xff') + "{}", "its header was cut"},
      {"short", "it was cut"},
  };
  for (const auto& [file, words] : cases) {
    const auto found = weights(file);
    const bool good = !found && found.error().message.find(words) != std::string::npos;
    if (!good) std::printf("%s\n", found ? "nothing" : found.error().message.c_str());
    CHECK(good);
  }
}
