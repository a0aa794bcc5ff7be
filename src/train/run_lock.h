// RunLock: one training at a time in a run's folder, on one machine or a shared file system.
//
// FOLDER/run.lock holds one JSON line: host, process, start time, a token. The holder keeps the
// file open under flock(2), which ends with the process however it dies, and touches it every 10 s.
// On a file system that does not share flock between machines the touches are still visible: a lock
// of another machine that has not been touched for 60 s is stale. Rank 0 of a training holds it.
#pragma once

#include <memory>
#include <string>

namespace longnet {

class RunLock {
 public:
  enum class State {
    kHeld,
    kGone,   // the folder or the lock file was deleted
    kTaken,  // another process holds the folder now
  };

  /// Creates the folder if needed and takes its lock. Waits up to 60 s if only time can tell
  /// whether a holder on another machine is alive. Throws Error naming the holder.
  explicit RunLock(const std::string& folder);
  /// Releases the folder: removes the lock file, and the folders that the constructor created if
  /// they are empty.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  /// Whether this process still holds the lock; reads the file.
  State state() const;
  /// The holder named in the lock file: "process 123 on node1 since 2026-01-31T12:00:00Z"; empty if
  /// it names none.
  std::string holder() const;
  /// FOLDER/run.lock
  const std::string& path() const;
  /// How many folders above it the constructor made.
  int folders_made() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
