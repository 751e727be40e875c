// One JSON object, field by field; the first mistake is kept, so that parsing reads as a list of fields.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace rescompile::internal {

using Json = nlohmann::json;

/// The document in `text`, of kind "discarded" where it is not JSON. Parsing and quoting are compiled once, in here.
Json parse_json(const std::string& text);

/// Whether `value` is a whole number of the range; larger ones than int64 are not.
bool is_integer(const Json& value, std::int64_t least, std::int64_t most);

/// The format, where the document has one: it is looked at first, since another format has other fields.
std::optional<std::int64_t> format_of(const Json& document);

/// `text` as a JSON string: in quotes, control characters escaped.
std::string quoted(const std::string& text);

/// Where the first mistake in a document is, in words; empty while there is none.
struct Mistake {
  std::string words;

  /// `where` must be what is `wanted`.
  void note(const std::string& where, const std::string& wanted) { say(where, "must be " + wanted); }

  /// Any other sentence about `where`. Appended and not added: GCC 12 warns of overflows in such sums at -O3.
  void say(const std::string& where, const std::string& what) {
    if (words.empty()) words.append("`").append(where).append("` ").append(what);
  }
};

/// The fields of one object. After a mistake every field reads as an empty value.
class Fields {
 public:
  Fields(const Json& value, std::string where, Mistake& mistake);

  std::string text(const std::string& name);
  std::string sha256(const std::string& name);
  std::int64_t integer(const std::string& name, std::int64_t least, std::int64_t most);
  double number(const std::string& name);
  std::optional<std::int64_t> optional_integer(const std::string& name, std::int64_t least, std::int64_t most);
  std::optional<std::string> optional_text(const std::string& name);
  std::vector<std::string> texts(const std::string& name);
  /// A text that older documents lack: nothing there.
  std::optional<std::string> newer_text(const std::string& name);
  /// A text or null that older documents lack: nothing there.
  std::optional<std::string> newer_optional_text(const std::string& name);
  /// A list that older documents lack: empty there.
  std::vector<std::string> newer_texts(const std::string& name);
  /// A field that older documents lack, or null: null in both cases.
  const Json& newer(const std::string& name);
  std::vector<double> numbers(const std::string& name);
  std::vector<std::int64_t> integers(const std::string& name);

  /// One of `names`, as its position.
  std::size_t choice(const std::string& name, const std::vector<std::string>& names);

  /// The field itself; null where it is missing.
  const Json& raw(const std::string& name);

  /// The name of a field as it is written in a mistake.
  [[nodiscard]] std::string path(const std::string& name) const { return where_ + "." + name; }

  /// Reports every field that was not read as a mistake; called last.
  void finish();

 private:
  const Json* object_;
  std::string where_;
  Mistake& mistake_;
  std::map<std::string, bool> asked_;
};

}  // namespace rescompile::internal
