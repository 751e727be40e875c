// Blocking pool of an engine's sessions.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "backend.hpp"

namespace rescompile::internal {

/// Sessions for as many callers at once; further callers wait for one to come back. Safe for any number of threads.
class SessionPool {
 public:
  explicit SessionPool(std::vector<std::unique_ptr<Session>> sessions) : idle_(std::move(sessions)), count_(idle_.size()) {}

  /// A session in use; it goes back to the pool with the object.
  class Loan {
   public:
    explicit Loan(SessionPool& pool) : pool_(pool), session_(pool.take()) {}
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    ~Loan() { pool_.give_back(std::move(session_)); }

    Session& operator*() const { return *session_; }

   private:
    SessionPool& pool_;
    std::unique_ptr<Session> session_;
  };

  [[nodiscard]] std::size_t size() const { return count_; }

 private:
  std::unique_ptr<Session> take() {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [this] { return !idle_.empty(); });
    auto session = std::move(idle_.back());
    idle_.pop_back();
    return session;
  }

  void give_back(std::unique_ptr<Session> session) {
    {
      const std::lock_guard lock(mutex_);
      idle_.push_back(std::move(session));  // never grows beyond its first size, so this allocates nothing
    }
    returned_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Session>> idle_;
  std::size_t count_;
};

}  // namespace rescompile::internal
