// The fabric between replicas on one machine: every member's regions are shared memory files that
// its peers map, and a write is a copy.
//
// Each member owns a few files in one directory, all named `<member>.<incarnation>.<what>` with an
// incarnation drawn at random for each start: one file per region, a page with the sleeping word,
// and a FIFO as doorbell. `<member>.lock` is held locked for as long as the owner lives, so that a
// second process of the same member is refused, and files of a dead one may be removed. The owner
// unlinks all its files when the fabric ends; the directory stays, and whoever made up its name
// removes it.
//
// What is special here:
//  - Write is done when it returns: Completed(peer) == Posted(peer) always, and Poll() has nothing
//  to do.
//    FABRIC_BUSY never happens.
//  - A dead peer's memory stays mapped, so State() stays kUp when a peer dies: only the bootstrap
//  (or a
//    heartbeat that stands still) tells. Writing to a peer that is gone is harmless, also after its
//    files were unlinked or a new incarnation was started.
//  - Members trust each other not to shrink their files; a descriptor or grant is checked before
//  anything is mapped.
//  - Exposed memory is a file that the peer maps as well. A page of it that finds no room in the
//  file system is a SIGBUS for whoever writes it first: who lends sees to the room.
//  - kBroken: this side wrote to what its owner had concealed.
#pragma once

#include <memory>
#include <string>

#include "fabric/fabric.h"

namespace falcon {

struct ShmOptions {
  std::string directory;  // absolute, the same on all members; made (mode 0700) if it is missing
  std::string name;       // unique per member; 1 to 64 of A-Z a-z 0-9 _ -
  PeerId self = 0;
};

// Errors: SHM_BUSY (another live process owns this member), SHM_OPEN (bad name, directory or file).
// AddRegion's errors: FABRIC_REGION (no space, made twice, too late). Write and Read beyond the
// peer's region: FABRIC_BOUNDS, and nothing is written.
Status MakeShmFabric(const ShmOptions& options, std::unique_ptr<Fabric>* fabric);

}  // namespace falcon
