// See gzip.h.
#include "data/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <new>
#include <vector>

#include "core/error.h"
#include "core/input_file.h"

namespace longnet {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;

/// A gzip file from its first byte to its last.
class GzipReader {
 public:
  explicit GzipReader(const std::string& path) : file_(path) {
    if (file_.size() == 0)
      throw Error("{}: holds 0 bytes, so it is no gzip file; fetch it again", path);
    input_.resize(static_cast<size_t>(std::min(kPieceBytes, file_.size())));
    // 16: zlib reads gzip's header and verifies its checksum. The only failure left is memory.
    if (inflateInit2(&stream_, MAX_WBITS + 16) != Z_OK) throw std::bad_alloc();
  }
  ~GzipReader() { inflateEnd(&stream_); }
  GzipReader(const GzipReader&) = delete;

  void unpack(const std::function<void(const void*, int64_t)>& write) {
    std::vector<unsigned char> piece(kPieceBytes);
    check_header();
    for (;;) {
      if (stream_.avail_in == 0) refill();
      stream_.next_out = piece.data();
      stream_.avail_out = static_cast<uInt>(piece.size());
      const int status = inflate(&stream_, Z_NO_FLUSH);
      write(piece.data(), static_cast<int64_t>(piece.size() - stream_.avail_out));
      if (status == Z_STREAM_END) {
        if (!next_member()) return;
      } else if (status == Z_BUF_ERROR || (status == Z_OK && at_end() && stream_.avail_out > 0)) {
        fail("unexpected end");
      } else if (status == Z_MEM_ERROR) {
        throw std::bad_alloc();
      } else if (status != Z_OK) {
        fail(stream_.msg != nullptr ? stream_.msg : "wrong checksum");
      }
    }
  }

 private:
  InputFile file_;
  std::vector<unsigned char> input_;
  z_stream stream_{};
  int64_t read_ = 0;  // bytes of the file that were given to zlib

  bool at_end() const { return stream_.avail_in == 0 && read_ == file_.size(); }
  int64_t place() const { return read_ - static_cast<int64_t>(stream_.avail_in); }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{}: damaged or truncated gzip file ({} near byte {}); fetch it again",
                file_.path(), what, place());
  }
  void refill() {
    const int64_t count = std::min(static_cast<int64_t>(input_.size()), file_.size() - read_);
    file_.read(read_, input_.data(), count);
    read_ += count;
    stream_.next_in = input_.data();
    stream_.avail_in = static_cast<uInt>(count);
  }
  void check_header() {
    refill();
    if (stream_.avail_in < 2 || input_[0] != 0x1f || input_[1] != 0x8b)
      throw Error("{}: not a gzip file though its name ends in .gz; rename it or fetch it again",
                  file_.path());
  }
  /// After a member: true if another one begins here, false at the end of the file.
  bool next_member() {
    unsigned char mark[2] = {};
    const int64_t end = place();
    if (file_.read_some(end, mark, 2) == 2 && mark[0] == 0x1f && mark[1] == 0x8b) {
      LN_CHECK(inflateReset(&stream_) == Z_OK, "zlib cannot start again");
      return true;
    }
    for (;;) {
      for (; stream_.avail_in > 0; --stream_.avail_in)
        if (*stream_.next_in++ != 0)
          throw Error(
              "{}: the bytes from {} on are neither gzip data nor padding; it is damaged there, or "
              "something was added: fetch it again, or cut it with head -c {}",
              file_.path(), end, end);
      if (at_end()) return false;
      refill();
    }
  }
};

}  // namespace

void unpack_gzip(const std::string& path,
                 const std::function<void(const void* data, int64_t bytes)>& write) {
  GzipReader(path).unpack(write);
}

}  // namespace longnet
