#include "json_fields.hpp"

#include <algorithm>
#include <cmath>

namespace rescompile::internal {

namespace {

const Json nothing;

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string range_words(std::int64_t least, std::int64_t most) {
  return "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
}

}  // namespace

Json parse_json(const std::string& text) { return Json::parse(text, nullptr, /*allow_exceptions=*/false); }

bool is_integer(const Json& value, std::int64_t least, std::int64_t most) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    return false;
  const auto number = value.get<std::int64_t>();
  return least <= number && number <= most;
}

std::optional<std::int64_t> format_of(const Json& document) {
  if (!document.is_object()) return std::nullopt;
  const auto found = document.find("format");
  if (found == document.end() || !found->is_number_integer()) return std::nullopt;
  return found->get<std::int64_t>();
}

std::string quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

Fields::Fields(const Json& value, std::string where, Mistake& mistake)
    : object_(value.is_object() ? &value : nullptr), where_(std::move(where)), mistake_(mistake) {
  if (object_ == nullptr) mistake_.note(where_, "an object");
}

const Json& Fields::raw(const std::string& name) {
  asked_[name] = true;
  if (object_ == nullptr) return nothing;
  const auto found = object_->find(name);
  if (found != object_->end()) return *found;
  mistake_.say(path(name), "is missing");
  return nothing;
}

std::string Fields::text(const std::string& name) {
  const Json& value = raw(name);
  if (value.is_string()) return value.get<std::string>();
  mistake_.note(path(name), "a text");
  return {};
}

std::string Fields::sha256(const std::string& name) {
  std::string value = text(name);
  if (!is_sha256(value)) mistake_.note(path(name), "64 hexadecimal digits");
  return value;
}

std::int64_t Fields::integer(const std::string& name, std::int64_t least, std::int64_t most) {
  const Json& value = raw(name);
  if (is_integer(value, least, most)) return value.get<std::int64_t>();
  mistake_.note(path(name), range_words(least, most));
  return least;
}

double Fields::number(const std::string& name) {
  const Json& value = raw(name);
  if (value.is_number()) return value.get<double>();
  mistake_.note(path(name), "a number");
  return 0;
}

std::optional<std::int64_t> Fields::optional_integer(const std::string& name, std::int64_t least,
                                                     std::int64_t most) {
  if (raw(name).is_null()) return std::nullopt;
  return integer(name, least, most);
}

std::optional<std::string> Fields::optional_text(const std::string& name) {
  if (raw(name).is_null()) return std::nullopt;
  return text(name);
}

std::vector<std::string> Fields::texts(const std::string& name) {
  const Json& value = raw(name);
  if (value.is_array() && std::ranges::all_of(value, [](const Json& item) { return item.is_string(); }))
    return value.get<std::vector<std::string>>();
  mistake_.note(path(name), "a list of texts");
  return {};
}

const Json& Fields::newer(const std::string& name) {
  return object_ == nullptr || object_->contains(name) ? raw(name) : nothing;
}

std::optional<std::string> Fields::newer_text(const std::string& name) {
  if (object_ != nullptr && !object_->contains(name)) return std::nullopt;
  return text(name);
}

std::optional<std::string> Fields::newer_optional_text(const std::string& name) {
  if (object_ != nullptr && !object_->contains(name)) return std::nullopt;
  return optional_text(name);
}

std::vector<std::string> Fields::newer_texts(const std::string& name) {
  if (object_ != nullptr && !object_->contains(name)) return {};
  return texts(name);
}

std::vector<double> Fields::numbers(const std::string& name) {
  const Json& value = raw(name);
  if (value.is_array() && std::ranges::all_of(value, [](const Json& item) { return item.is_number(); }))
    return value.get<std::vector<double>>();
  mistake_.note(path(name), "a list of numbers");
  return {};
}

std::vector<std::int64_t> Fields::integers(const std::string& name) {
  constexpr auto limit = std::numeric_limits<std::int64_t>::max();
  const Json& value = raw(name);
  if (value.is_array() && std::ranges::all_of(value, [](const Json& item) { return is_integer(item, -limit, limit); }))
    return value.get<std::vector<std::int64_t>>();
  mistake_.note(path(name), "a list of whole numbers");
  return {};
}

std::size_t Fields::choice(const std::string& name, const std::vector<std::string>& names) {
  const Json& value = raw(name);
  if (value.is_string()) {
    const auto found = std::ranges::find(names, value.get<std::string>());
    if (found != names.end()) return static_cast<std::size_t>(found - names.begin());
  }
  std::string wanted = "one of";
  for (const auto& each : names) wanted += " " + each;
  mistake_.note(path(name), wanted);
  return 0;
}

void Fields::finish() {
  if (object_ == nullptr || !mistake_.words.empty()) return;
  for (const auto& [name, value] : object_->items())
    if (!asked_.contains(name)) mistake_.say(path(name), "is a field that this version does not know");
}

}  // namespace rescompile::internal
