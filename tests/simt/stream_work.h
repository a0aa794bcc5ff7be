// Work of streams that goes on by itself, as a stand-in of a communication library needs it: the
// emulator runs kernels at once, such work as late as the order of streams and events allows. So
// what is read too early, or overwritten too soon, shows in the numbers.
#pragma once

#include <functional>

#include "core/device_runtime.h"

namespace longnet::simt {

/// Puts work on the stream. advance() is called again and again, from where something waits for it,
/// until it returns true; it must not block. What is put on later runs behind it.
void enqueue(device_runtime::Stream stream, std::function<bool()> advance);
/// Forgets what is on the stream; it counts as ended.
void drop_work(device_runtime::Stream stream);
/// Seconds after which work that does not go on is left as it is: it never ends, the host goes on,
/// and streams that wait for it never end either, until drop_work(). Returns the old limit (60).
double set_patience(double seconds);
/// True: asking whether an event has finished moves the work before it on. At the start false.
bool set_polls_advance(bool on);

}  // namespace longnet::simt
