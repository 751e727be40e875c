#include "signature.hpp"

#include <openssl/evp.h>
#include <openssl/pem.h>

namespace rescompile::internal {

namespace {

constexpr const char* signature_name = "manifest.sig";
constexpr std::uint64_t signature_bytes = 64, key_limit = 1 << 16;
/// What is signed begins with it, so that no signature of something else fits; its final zero byte is signed, too.
constexpr std::string_view purpose("rescompile engine 1", 20);

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Context = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;
using Memory = std::unique_ptr<BIO, decltype(&BIO_free)>;

/// The Ed25519 key in the PEM `text`; null where it holds another thing.
Key parse_key(const std::string& text) {
  const Memory memory(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free);
  Key key(memory ? PEM_read_bio_PUBKEY(memory.get(), nullptr, nullptr, nullptr) : nullptr, EVP_PKEY_free);
  if (key && EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519) key.reset();
  return key;
}

const unsigned char* bytes_of(const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); }

bool signed_by(EVP_PKEY* key, const std::string& message, const std::string& signature) {
  const Context context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  return context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key) == 1 &&
         EVP_DigestVerify(context.get(), bytes_of(signature), signature.size(), bytes_of(message), message.size()) == 1;
}

}  // namespace

std::optional<Error> check_signature(const EngineFiles& files, const std::string& manifest,
                                     const std::vector<std::filesystem::path>& trusted_keys) {
  const auto signature = files.read_unlisted(
      signature_name, signature_bytes,
      "the engine in " + files.directory().string() + " is not signed, and only signed ones are trusted here; sign it "
      "with rescompile sign");
  if (!signature) return signature.error();
  for (const auto& path : trusted_keys) {
    const auto file = PlainFile::open(path, path.string() + " does not exist; pass a public key of rescompile keygen");
    if (!file) return Error{ErrorCode::usage, file.error().message};
    const auto text = file->read(key_limit);
    if (!text) return Error{ErrorCode::usage, text.error().message};
    const Key key = parse_key(*text);
    if (!key)
      return Error{ErrorCode::usage,
                   path.string() + " is not an Ed25519 public key in PEM; pass a public key of rescompile keygen"};
    if (signed_by(key.get(), std::string(purpose) + manifest, *signature)) return std::nullopt;
  }
  return Error{ErrorCode::engine, "the engine in " + files.directory().string() +
                                      " was not signed by a trusted key, or changed afterwards; do not use it"};
}

}  // namespace rescompile::internal
