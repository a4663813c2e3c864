// The fabric between hosts without RDMA: one-sided writes carried over TCP.
//
// Every replica listens on one port. Connect dials the peer's, and that stream carries this side's
// writes and reads there, and the answers of reads back; the peer's writes come over a stream that
// the peer dials. A stream begins with a hello: who dials whom, the connection number, and the
// random token of the listener's incarnation, which only its descriptor tells. A hello whose number
// this side has not been given by Connect yet waits for it, for a bounded time; one whose number
// was dropped, or whose token is of another incarnation, is refused. So nothing of an old
// connection lands.
//
// Why not libfabric: its tcp provider receives straight into the target memory, and a stream ends
// anywhere, so aligned 8-byte words are seen half old and half new, even by the thread that drives
// the provider (measured with 1.17: 53 296 torn words in 3 s of 4 KiB writes). Here a word that has
// not arrived whole waits in the receive buffer.
//
// What is special here:
//  - Connect does not wait: State() is kDown until the peer has answered, and writes posted
//    meanwhile wait in the queue. No answer within the bound, or a refusal: kBroken.
//  - Memory changes in Poll() and ArmWake() only, both of the owner. Ring() and Poll() send what
//  was
//    posted, in as few system calls as they can.
//  - Completed() says that the kernel has the bytes (their source is free), not that they arrived.
//  - Nobody is rung: a sleeper hears its sockets. wakes_sent stays 0.
//  - A peer whose process ends is kBroken at the next Poll(); one whose host falls silent, within
//    dead_after. Either stream's end ends the connection.
//  - One stream per direction costs acknowledgements of their own: a plain ping-pong over two
//    streams takes 1.45 times that over one, and this fabric 1.1 times the former.
//  - Bytes travel in the clear: who can read or change packets on the way is trusted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "fabric/fabric.h"
#include "os/clock.h"

namespace falcon {

struct TcpFabricOptions {
  std::string address;    // numeric IPv4 or IPv6, listened on
  uint16_t port = 0;      // 0: any
  std::string advertise;  // what peers dial; empty: `address`, which must not be a wildcard then
  size_t queue_operations = 1024;          // posted and not completed, per peer
  size_t socket_buffer_bytes = 0;          // of each stream and direction; 0: the kernel decides
  Nanoseconds greet_within = 3 * kSecond;  // dialled and answered; a stranger's hello
  Nanoseconds dead_after = 10 * kSecond;   // a peer that takes or acknowledges nothing; >= 2 s
};

// Errors: FABRIC_CONNECT (cannot listen there). AddRegion's errors: FABRIC_REGION (no space, made
// twice, too late). Write and Read beyond the peer's region, or of more than 1 GiB: FABRIC_BOUNDS,
// and nothing is posted.
Status MakeTcpFabric(const TcpFabricOptions& options, PeerId self, std::unique_ptr<Fabric>* fabric);

}  // namespace falcon
