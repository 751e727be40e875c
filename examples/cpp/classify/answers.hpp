// What both programs say on the terminal.
#pragma once

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <rescompile/rescompile.hpp>
#include <string>
#include <string_view>
#include <system_error>

/// The sentence of `error` on stderr, and the exit code.
inline int refuse(const char* program, const rescompile::Error& error) {
  std::cerr << program << ": " << error.message << '\n';
  return 1;
}

/// A whole number without a sign; false for anything else.
template <typename Number>
bool parse_number(std::string_view text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && rest == end;
}

/// What is wrong with the command line, how to use the program, and the exit code.
inline int misused(const char* program, const std::string& problem, const char* usage) {
  std::cerr << program << ": " << problem << '\n' << usage;
  return 2;
}

/// Whether the engine returns numbers, of which none is a probability.
inline bool shows_numbers(const rescompile::Manifest& manifest) {
  return manifest.outputs[0].kind == rescompile::OutputKind::values ||
         manifest.outputs[0].kind == rescompile::OutputKind::features;
}

inline std::string name_of(const rescompile::Manifest& manifest, std::size_t index) {
  return index < manifest.classes.size() ? manifest.classes[index] : "value " + std::to_string(index);
}

/// `best` as a line that ends with `more`.
inline void print_line(const rescompile::Manifest& manifest, const rescompile::Prediction& best, const std::string& more) {
  const std::string name = name_of(manifest, best.index);
  if (shows_numbers(manifest))
    std::printf("%12.6g  %s%s\n", best.probability, name.c_str(), more.c_str());
  else
    std::printf("%6.2f %%  %s%s\n", 100 * best.probability, name.c_str(), more.c_str());
}

/// 0 where all that was printed could be written, else 1 and a sentence: a disk may be full.
inline int end_of_output(const char* program) {
  if (std::cout.flush() && std::fflush(stdout) == 0) return 0;
  return refuse(program, {rescompile::ErrorCode::usage, "the output cannot be written (" +
                                                           std::generic_category().message(errno) +
                                                           "); send it to another place"});
}
