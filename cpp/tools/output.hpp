// What both programs say on the terminal.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

/// `code`, or 1 with a sentence on stderr where not all that was printed could be written, as on a full disk.
inline int exit_code(int code) {
  errno = 0;
  std::cout.flush();
  if (std::cout && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  const char* const reason = errno == 0 ? "the disk may be full" : std::strerror(errno);
  std::cerr << "the output cannot be written (" << reason << "); send it to another place\n";
  return 1;
}

/// What is wrong with the command line, how to use the program, and the exit code.
inline int misused(const char* program, const std::string& problem, const char* usage) {
  std::cerr << program << ": " << problem << '\n' << usage;
  return 2;
}
