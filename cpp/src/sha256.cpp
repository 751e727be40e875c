#include "sha256.hpp"

#include <openssl/evp.h>

#include <array>

namespace rescompile::internal {

struct Sha256::Context {
  EVP_MD_CTX* md = EVP_MD_CTX_new();
  bool good = md != nullptr && EVP_DigestInit_ex(md, EVP_sha256(), nullptr) == 1;

  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { EVP_MD_CTX_free(md); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {}
Sha256::~Sha256() = default;

void Sha256::update(std::string_view bytes) {
  context_->good = context_->good && EVP_DigestUpdate(context_->md, bytes.data(), bytes.size()) == 1;
}

std::string Sha256::hex_digest() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (!context_->good || EVP_DigestFinal_ex(context_->md, digest.data(), &size) != 1) return {};
  constexpr std::string_view digits = "0123456789abcdef";
  std::string hex;
  for (unsigned int index = 0; index < size; ++index) {
    hex += digits[digest[index] >> 4];
    hex += digits[digest[index] & 15];
  }
  return hex;
}

std::string sha256_of(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex_digest();
}

}  // namespace rescompile::internal
