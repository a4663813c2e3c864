// Reading a log back after a start: what is in it, what is torn, what is damaged, where to go on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "log/log_index.h"
#include "log/segment.h"
#include "log/wal.h"
#include "os/status.h"

namespace falcon {

struct ScannedLog {
  RecoveredLog recovered;
  std::vector<std::shared_ptr<Segment>> segments;  // all files, ascending by number
  LogIndex index;
  LogPosition tail;
  uint64_t last_batch = 0;    // number of the last batch of the log
  uint64_t next_batch = 1;    // number to go on with
  uint64_t forced_batch = 0;  // highest batch known to have been forced

  // The last batch's place (nullptr: the log has none).
  std::shared_ptr<Segment> last_segment;
  uint64_t last_offset = 0;
  uint64_t last_bytes = 0;

  // Where appending goes on in an existing segment; nullptr: a new segment is needed, because there
  // is none or because the last one holds torn or damaged bytes, which are left as they are.
  std::shared_ptr<Segment> append_segment;
  uint64_t append_offset = 0;
};

// Writes nothing except that it makes the directory if it is missing. Errors: WAL_OPEN,
// WAL_FOREIGN, WAL_READ.
Status ScanLog(Storage& storage, const WalOptions& options, ScannedLog* log);

}  // namespace falcon
