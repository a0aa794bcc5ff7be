// How OpenMP's threads wait: bounded where the user said nothing, his own way where he did.
#include <gtest/gtest.h>
#include <stdio.h>
#include <unistd.h>

#include "support/source_folder.h"

namespace longnet::test {
namespace {

/// What OpenMP says of its settings while `longnet --version` runs, once for each start.
std::string settings(const std::string& environment, const std::string& loader = "") {
  const std::string command = "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT -u KMP_BLOCKTIME " +
                              environment + " OMP_DISPLAY_ENV=verbose " + loader + " '" +
                              binary_folder() + "/longnet' --version 2>&1";
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return "";
  std::string text;
  char block[4096];
  for (size_t n; (n = ::fread(block, 1, sizeof block, pipe)) > 0;) text.append(block, n);
  EXPECT_EQ(::pclose(pipe), 0) << text;
  return text;
}

int starts(const std::string& text) {
  int count = 0;
  for (size_t at = 0; (at = text.find("OPENMP DISPLAY ENVIRONMENT BEGIN", at)) != std::string::npos;
       ++at)
    ++count;
  return count;
}

TEST(Waiting, SpinsForABoundedTimeUnlessTheUserSaysSomethingElse) {
  const std::string by_itself = settings("");
  if (by_itself.find("GOMP_SPINCOUNT") == std::string::npos) GTEST_SKIP() << "not GNU's OpenMP";
  EXPECT_EQ(starts(by_itself), 2) << by_itself;
  const size_t last = by_itself.rfind("GOMP_SPINCOUNT = ");
  EXPECT_EQ(by_itself.substr(last, 23), "GOMP_SPINCOUNT = '2000'") << by_itself;
  EXPECT_NE(by_itself.find("longnet 0."), std::string::npos) << by_itself;
  for (const char* loader : {"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"}) {
    if (::access(loader, X_OK) != 0) continue;
    const std::string text = settings("", loader);
    EXPECT_EQ(starts(text), 1) << "a loader must not be started with our words: " << text;
    EXPECT_NE(text.find("longnet 0."), std::string::npos) << text;
  }
  for (const char* chosen :
       {"OMP_WAIT_POLICY=active", "OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=77"}) {
    const std::string text = settings(chosen);
    EXPECT_EQ(starts(text), 1) << text;
    EXPECT_EQ(text.find("'2000'"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace longnet::test
