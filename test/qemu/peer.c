/*
 * A falcond for the tests of the patched QEMU: it owns the shared memory and the doorbells, and
 * does with them exactly what the test says, which includes what a real falcond must never do.
 *
 *   peer SOCKET CAPACITY MODE INTERFACE
 *
 * MODE is what the hand-shake answers: ok, or one of those in send_welcome() and make_memory().
 * INTERFACE is the tap whose network side the peer plays.
 *
 * Commands come as lines on stdin, each answered by one line on stdout. RING is ingress, deliver or
 * egress; numbered frames carry SEQ in bytes 14-17 and a pattern that depends on it.
 *
 * attached: 1 if a QEMU has completed the hand-shake, 0 if not, or not any more
 * push HEX: one frame into deliver, "ok" or "full"
 * push-many FIRST COUNT SIZE: numbered frames into deliver until it is full, how many went in
 * take RING COUNT: consume up to COUNT frames, their bytes in hex between spaces
 * arm RING consumer|producer: set our waiting word
 * ring: ring QEMU, whether it waits or not
 * rings: how often QEMU has rung since the last question
 * state RING: tail head produced consumed producer_waiting consumer_waiting
 * poke RING tail|head|length VALUE: damage a ring, or the length of its next record, and ring
 * inject HEX: send a frame to the tap, as the network would
 * inject-many FIRST COUNT SIZE: numbered frames to the tap, how many the kernel took
 * sniff COUNT: up to COUNT frames that came out of the tap, their bytes in hex
 * hangup: close the socket to QEMU
 * talk: write to the socket, which the protocol forbids
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ring_layout.h"

#define ETHERTYPE_TEST 0x88b5
#define LINE_BYTES (2 * FALCON_FRAME_MAX_BYTES + 256)

static FalconShm* shm;
static int shm_fd, to_falcond, to_qemu, listener, client = -1, packet = -1;
static const char* mode;
static uint8_t frame[FALCON_FRAME_MAX_BYTES];
static const char* const ring_names[FALCON_RING_COUNT] = {"ingress", "deliver", "egress"};

static void die(const char* what) {
  perror(what);
  exit(1);
}

static FalconRing* ring_named(const char* name) {
  for (int i = 0; i < FALCON_RING_COUNT; i++) {
    if (strcmp(name, ring_names[i]) == 0) return &shm->ring[i];
  }
  fprintf(stderr, "no ring %s\n", name);
  exit(1);
}

static uint8_t* ring_bytes(const FalconRing* ring) { return (uint8_t*)shm + ring->offset; }

static uint64_t record_bytes(uint64_t length) {
  return (FALCON_RING_RECORD_HEADER + length + 7) & ~7ull;
}

static void put_header(FalconRing* ring, uint64_t position, uint32_t length) {
  uint32_t header[2] = {length, 0};
  memcpy(ring_bytes(ring) + (position & (ring->capacity - 1)), header, sizeof header);
}

static void ring_qemu(void) {
  uint64_t one = 1;
  if (write(to_qemu, &one, sizeof one) != sizeof one) die("doorbell");
}

static void wake(uint32_t* waiting) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (__atomic_load_n(waiting, __ATOMIC_RELAXED) &&
      __atomic_exchange_n(waiting, 0, __ATOMIC_RELAXED))
    ring_qemu();
}

static bool push(const uint8_t* bytes, uint32_t size) {
  FalconRing* ring = &shm->ring[FALCON_RING_DELIVER];
  uint64_t tail = ring->tail, left = ring->capacity - (tail & (ring->capacity - 1));
  uint64_t record = record_bytes(size), skip = left < record ? left : 0;
  uint64_t used = tail - __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
  if (ring->capacity - used < skip + record) return false;
  if (skip) put_header(ring, tail, FALCON_RING_WRAP);
  tail += skip;
  put_header(ring, tail, size);
  memcpy(ring_bytes(ring) + (tail & (ring->capacity - 1)) + FALCON_RING_RECORD_HEADER, bytes, size);
  ring->produced_frames++;
  __atomic_store_n(&ring->tail, tail + record, __ATOMIC_RELEASE);
  wake(&ring->consumer_waiting);
  return true;
}

static void print_hex(const uint8_t* bytes, size_t size) {
  for (size_t i = 0; i < size; i++) printf("%02x", bytes[i]);
}

static void take(FalconRing* ring, unsigned count) {
  for (unsigned taken = 0; taken < count; taken++) {
    uint64_t head = ring->head;
    if (head == __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE)) break;
    uint32_t length;
    memcpy(&length, ring_bytes(ring) + (head & (ring->capacity - 1)), sizeof length);
    if (length == FALCON_RING_WRAP) {
      head += ring->capacity - (head & (ring->capacity - 1));
      memcpy(&length, ring_bytes(ring), sizeof length);
    }
    if (length > FALCON_FRAME_MAX_BYTES) die("QEMU wrote a bad length");
    printf("%s", taken ? " " : "");
    print_hex(ring_bytes(ring) + (head & (ring->capacity - 1)) + FALCON_RING_RECORD_HEADER, length);
    ring->consumed_frames++;
    __atomic_store_n(&ring->head, head + record_bytes(length), __ATOMIC_RELEASE);
    wake(&ring->producer_waiting);
  }
  printf("\n");
}

static void number_frame(uint32_t seq, unsigned size) {
  for (unsigned i = 0; i < size; i++) frame[i] = (uint8_t)(seq * 31 + i);
  memcpy(frame, "\x52\x54\x00\x12\x34\x56\x02\x00\x00\x00\x00\x01\x88\xb5", 14);
  for (int i = 0; i < 4; i++) frame[14 + i] = (uint8_t)(seq >> (24 - 8 * i));
}

static bool inject(unsigned size) { return send(packet, frame, size, 0) == (ssize_t)size; }

static void many(uint32_t first, uint32_t count, unsigned size, bool into_ring) {
  uint32_t done = 0;
  for (; done < count; done++) {
    number_frame(first + done, size);
    if (!(into_ring ? push(frame, size) : inject(size))) break;
  }
  printf("%u\n", done);
}

static void sniff(unsigned count) {
  unsigned seen = 0;
  while (seen < count) {
    struct sockaddr_ll from;
    socklen_t from_bytes = sizeof from;
    ssize_t size =
        recvfrom(packet, frame, sizeof frame, MSG_DONTWAIT, (struct sockaddr*)&from, &from_bytes);
    if (size < 0) break;
    if (from.sll_pkttype == PACKET_OUTGOING) continue;
    printf("%s", seen++ ? " " : "");
    print_hex(frame, (size_t)size);
  }
  printf("\n");
}

static void open_packet_socket(const char* interface) {
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_TEST)};
  int buffer = 16 << 20;
  address.sll_ifindex = (int)if_nametoindex(interface);
  if (!address.sll_ifindex) die(interface);
  packet = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETHERTYPE_TEST));
  if (packet < 0 || bind(packet, (struct sockaddr*)&address, sizeof address) < 0)
    die("packet socket");
  setsockopt(packet, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
  setsockopt(packet, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
}

static void make_memory(uint64_t capacity) {
  uint64_t total = FALCON_CONTROL_BYTES + FALCON_RING_COUNT * capacity;
  shm_fd = memfd_create("falcon-peer", MFD_CLOEXEC);
  if (shm_fd < 0 || ftruncate(shm_fd, (off_t)total) < 0) die("memfd");
  shm = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED, shm_fd, 0);
  if (shm == MAP_FAILED) die("mmap");
  shm->magic = FALCON_SHM_MAGIC + (strcmp(mode, "memory-magic") == 0 ? 1 : 0);
  shm->version = FALCON_LAYOUT_VERSION + (strcmp(mode, "memory-version") == 0 ? 6 : 0);
  shm->control_bytes = FALCON_CONTROL_BYTES;
  shm->total_bytes = total;
  for (int i = 0; i < FALCON_RING_COUNT; i++) {
    shm->ring[i].offset = FALCON_CONTROL_BYTES + (uint64_t)i * capacity;
    shm->ring[i].capacity = capacity;
  }
  if (strcmp(mode, "capacity") == 0) shm->ring[1].capacity = capacity - 8;
  if (strcmp(mode, "bounds") == 0) shm->ring[2].offset += 4096;
  if (strcmp(mode, "positions") == 0) shm->ring[0].head = 64;
  if (strcmp(mode, "overlap") == 0) shm->ring[1].offset = shm->ring[0].offset + 4096;
}

static void send_welcome(void) {
  FalconWelcome welcome = {.magic = FALCON_WELCOME_MAGIC, .version = FALCON_LAYOUT_VERSION};
  int fds[4] = {shm_fd, to_falcond, to_qemu, shm_fd};
  size_t fds_bytes = (strcmp(mode, "many-fds") == 0 ? 4 : 3) * sizeof(int);
  union {
    char bytes[CMSG_SPACE(sizeof fds)];
    struct cmsghdr header;
  } control;
  struct iovec iov = {&welcome, strcmp(mode, "short") == 0 ? 20 : sizeof welcome};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
  welcome.total_bytes = shm->total_bytes + (strcmp(mode, "size") == 0 ? 8 : 0);
  if (strcmp(mode, "magic") == 0) welcome.magic = 0x21;
  if (strcmp(mode, "version") == 0) {
    welcome.status = FALCON_STATUS_VERSION;
    welcome.version = 7;
  }
  if (strcmp(mode, "busy") == 0) welcome.status = FALCON_STATUS_BUSY;
  if (strcmp(mode, "status") == 0) welcome.status = 9;
  if (welcome.status == FALCON_STATUS_OK && strcmp(mode, "nofds") != 0) {
    memset(&control, 0, sizeof control);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(fds_bytes);
    memcpy(CMSG_DATA(&control.header), fds, fds_bytes);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(fds_bytes);
  }
  if (sendmsg(client, &message, MSG_NOSIGNAL) < 0) die("welcome");
}

static void accept_qemu(void) {
  FalconHello hello;
  client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (client < 0) die("accept");
  if (recv(client, &hello, sizeof hello, MSG_WAITALL) != sizeof hello ||
      hello.magic != FALCON_HELLO_MAGIC || hello.version != FALCON_LAYOUT_VERSION ||
      hello.pid == 0) {
    fprintf(stderr, "bad hello\n");
    exit(1);
  }
  if (strcmp(mode, "silent") == 0) return;
  if (strcmp(mode, "close") != 0) send_welcome();
  if (strcmp(mode, "ok") != 0) {
    close(client);
    client = -1;
  }
}

static bool qemu_gone(void) {
  char byte;
  return client < 0 || recv(client, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

static void poke(FalconRing* ring, const char* what, uint64_t value) {
  if (strcmp(what, "tail") == 0) {
    __atomic_store_n(&ring->tail, value, __ATOMIC_RELEASE);
  } else if (strcmp(what, "head") == 0) {
    __atomic_store_n(&ring->head, value, __ATOMIC_RELEASE);
  } else {
    put_header(ring, ring->tail, (uint32_t)value);
    __atomic_store_n(&ring->tail, ring->tail + 64, __ATOMIC_RELEASE);
  }
  ring_qemu();
}

static unsigned parse_hex(const char* text) {
  unsigned size = 0;
  for (; text[0] > ' ' && text[1] > ' ' && size < sizeof frame; text += 2) {
    char byte[3] = {text[0], text[1], 0};
    frame[size++] = (uint8_t)strtoul(byte, NULL, 16);
  }
  return size;
}

static void print_state(const FalconRing* ring) {
  printf("%lu %lu %lu %lu %u %u\n", ring->tail, ring->head, ring->produced_frames,
         ring->consumed_frames, ring->producer_waiting, ring->consumer_waiting);
}

static void arm(FalconRing* ring, const char* side) {
  __atomic_store_n(side[0] == 'c' ? &ring->consumer_waiting : &ring->producer_waiting, 1,
                   __ATOMIC_SEQ_CST);
  printf("ok\n");
}

static void command(char* line) {
  char *save = NULL, *verb = strtok_r(line, " \n", &save);
  char *a = strtok_r(NULL, " \n", &save), *b = strtok_r(NULL, " \n", &save),
       *c = strtok_r(NULL, " \n", &save);
  if (!verb) return;
  if (strcmp(verb, "attached") == 0) {
    printf("%d\n", !qemu_gone());
  } else if (strcmp(verb, "push") == 0) {
    printf("%s\n", push(frame, parse_hex(a)) ? "ok" : "full");
  } else if (strcmp(verb, "push-many") == 0 || strcmp(verb, "inject-many") == 0) {
    many((uint32_t)atol(a), (uint32_t)atol(b), (unsigned)atol(c), verb[0] == 'p');
  } else if (strcmp(verb, "take") == 0) {
    take(ring_named(a), (unsigned)atol(b));
  } else if (strcmp(verb, "arm") == 0) {
    arm(ring_named(a), b);
  } else if (strcmp(verb, "ring") == 0) {
    ring_qemu();
    printf("ok\n");
  } else if (strcmp(verb, "rings") == 0) {
    uint64_t count = 0;
    if (read(to_falcond, &count, sizeof count) < 0 && errno != EAGAIN) die("eventfd");
    printf("%lu\n", count);
  } else if (strcmp(verb, "state") == 0) {
    print_state(ring_named(a));
  } else if (strcmp(verb, "poke") == 0) {
    poke(ring_named(a), b, strtoull(c, NULL, 0));
    printf("ok\n");
  } else if (strcmp(verb, "inject") == 0) {
    printf("%s\n", inject(parse_hex(a)) ? "ok" : "refused");
  } else if (strcmp(verb, "sniff") == 0) {
    sniff((unsigned)atol(a));
  } else if (strcmp(verb, "hangup") == 0) {
    close(client);
    client = -1;
    printf("ok\n");
  } else if (strcmp(verb, "talk") == 0) {
    printf("%s\n", send(client, "?", 1, MSG_NOSIGNAL) == 1 ? "ok" : "refused");
  } else {
    fprintf(stderr, "unknown command %s\n", verb);
    exit(1);
  }
}

int main(int argc, char** argv) {
  static char line[LINE_BYTES];
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (argc != 5) {
    fprintf(stderr, "usage: peer SOCKET CAPACITY MODE INTERFACE\n");
    return 2;
  }
  mode = argv[3];
  make_memory(strtoull(argv[2], NULL, 0));
  to_falcond = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  to_qemu = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (strcmp(argv[4], "none") != 0) open_packet_socket(argv[4]);

  snprintf(address.sun_path, sizeof address.sun_path, "%s", argv[1]);
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, (struct sockaddr*)&address, sizeof address) < 0 || listen(listener, 4) < 0)
    die(argv[1]);
  setvbuf(stdin, NULL, _IONBF, 0);
  setvbuf(stdout, NULL, _IOFBF, 1 << 20);
  printf("ready\n");
  fflush(stdout);

  for (;;) {
    struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = listener, .events = POLLIN}};
    if (poll(fds, 2, -1) < 0) die("poll");
    if (fds[1].revents) accept_qemu();
    if (!fds[0].revents) continue;
    if (!fgets(line, sizeof line, stdin)) return 0;
    command(line);
    fflush(stdout);
  }
}
