// CRC32C (Castagnoli), as iSCSI defines it (RFC 3720, appendix B.4): the checksum of log entries,
// ring records and shared words. Uses the SSE4.2 instruction where the processor has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace falcon {

// `seed` is the checksum of the bytes before `data` (0 at the start), so that
// Crc32c(b, Crc32c(a)) == Crc32c(a followed by b).
[[nodiscard]] uint32_t Crc32c(std::span<const std::byte> data, uint32_t seed = 0);

// The table-driven version, eight bytes at a time, for processors without the instruction.
[[nodiscard]] uint32_t Crc32cPortable(std::span<const std::byte> data, uint32_t seed = 0);

}  // namespace falcon
