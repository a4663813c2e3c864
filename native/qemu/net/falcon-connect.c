/*
 * The hand-shake with falcond
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU says hello, falcond answers with a welcome and three descriptors.  What
 * comes over the socket is checked before it is believed: a falcond of another
 * version or a wrong path must end in an error message, never in a guest that
 * runs on rings which are not what they seem.
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/host-utils.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "falcon-connect.h"

#define HANDSHAKE_LIMIT_MS 5000
#define CONNECT_RETRY_US 10000
#define SHM_LIMIT_BYTES (4 * GiB)
#define WELCOME_FDS 3
#define RECORD_ALIGN 8

static int64_t left_ms(int64_t deadline)
{
    return MAX(0, deadline - qemu_clock_get_ms(QEMU_CLOCK_REALTIME));
}

static void set_timeout_error(const char *path, Error **errp)
{
    error_setg(errp, "falcon: falcond at '%s' did not complete the hand-shake "
               "within %d seconds", path, HANDSHAKE_LIMIT_MS / 1000);
}

static int open_socket(const char *path, int64_t deadline, Error **errp)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int sock;

    if (!*path || strlen(path) >= sizeof(addr.sun_path)) {
        error_setg(errp, "falcon: socket path '%s' must have 1 to %zu bytes",
                   path, sizeof(addr.sun_path) - 1);
        return -1;
    }
    pstrcpy(addr.sun_path, sizeof(addr.sun_path), path);

    sock = qemu_socket(PF_UNIX, SOCK_STREAM, 0);
    if (sock < 0) {
        error_setg_errno(errp, errno, "falcon: cannot create a socket");
        return -1;
    }
    qemu_socket_set_nonblock(sock);

    while (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        /* EAGAIN: the listener is there, but its backlog is full. */
        if (errno != EAGAIN && errno != EINTR) {
            error_setg_errno(errp, errno, "falcon: no falcond listens on '%s'",
                             path);
            close(sock);
            return -1;
        }
        if (!left_ms(deadline)) {
            set_timeout_error(path, errp);
            close(sock);
            return -1;
        }
        g_usleep(CONNECT_RETRY_US);
    }
    return sock;
}

static int send_hello(int sock, const char *path, Error **errp)
{
    FalconHello hello = {
        .magic = FALCON_HELLO_MAGIC,
        .version = FALCON_LAYOUT_VERSION,
        .pid = getpid(),
    };

    /* A fresh socket has room for these few bytes, so no waiting here. */
    if (TEMP_FAILURE_RETRY(send(sock, &hello, sizeof(hello), MSG_NOSIGNAL)) !=
        sizeof(hello)) {
        error_setg_errno(errp, errno, "falcon: cannot greet falcond at '%s'",
                         path);
        return -1;
    }
    return 0;
}

static void close_fds(int *fds, int nfds)
{
    int i;

    for (i = 0; i < nfds; i++) {
        close(fds[i]);
    }
}

/* Moves the descriptors of one message to @fds, closing what is too many. */
static bool collect_fds(struct msghdr *msg, int *fds, int *nfds)
{
    struct cmsghdr *cmsg;
    bool fits = !(msg->msg_flags & MSG_CTRUNC);

    for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        int count, i;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(fd));
            qemu_set_cloexec(fd);
            if (*nfds < WELCOME_FDS) {
                fds[(*nfds)++] = fd;
            } else {
                close(fd);
                fits = false;
            }
        }
    }
    return fits;
}

static int receive_welcome(int sock, const char *path, int64_t deadline,
                           FalconWelcome *welcome, int *fds, int *nfds,
                           Error **errp)
{
    size_t got = 0;

    while (got < sizeof(*welcome)) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int) * WELCOME_FDS)];
        } control;
        struct iovec iov = {
            .iov_base = (char *)welcome + got,
            .iov_len = sizeof(*welcome) - got,
        };
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control.bytes,
            .msg_controllen = sizeof(control.bytes),
        };
        struct pollfd pfd = { .fd = sock, .events = POLLIN };
        int ready = poll(&pfd, 1, left_ms(deadline));
        ssize_t len;

        if (ready == 0) {
            set_timeout_error(path, errp);
            return -1;
        }
        len = ready < 0 ? -1 : recvmsg(sock, &msg, 0);
        if (len < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (len < 0) {
            error_setg_errno(errp, errno, "falcon: cannot read from falcond "
                             "at '%s'", path);
            return -1;
        }
        if (len == 0) {
            error_setg(errp, "falcon: falcond at '%s' closed the connection "
                       "during the hand-shake", path);
            return -1;
        }
        if (!collect_fds(&msg, fds, nfds)) {
            error_setg(errp, "falcon: falcond at '%s' sent too many "
                       "descriptors", path);
            return -1;
        }
        got += len;
    }
    return 0;
}

static int check_welcome(const FalconWelcome *welcome, const char *path,
                         int nfds, Error **errp)
{
    if (welcome->magic != FALCON_WELCOME_MAGIC) {
        error_setg(errp, "falcon: what listens on '%s' is not a falcond "
                   "(magic 0x%08x)", path, welcome->magic);
        return -1;
    }
    if (welcome->status == FALCON_STATUS_VERSION ||
        welcome->version != FALCON_LAYOUT_VERSION) {
        error_setg(errp, "falcon: ring layout versions differ: this QEMU "
                   "speaks %u, falcond at '%s' speaks %u",
                   FALCON_LAYOUT_VERSION, path, welcome->version);
        return -1;
    }
    if (welcome->status == FALCON_STATUS_BUSY) {
        error_setg(errp, "falcon: falcond at '%s' is busy: another QEMU is "
                   "attached to it", path);
        return -1;
    }
    if (welcome->status != FALCON_STATUS_OK) {
        error_setg(errp, "falcon: falcond at '%s' refused with unknown "
                   "status %u", path, welcome->status);
        return -1;
    }
    if (nfds != WELCOME_FDS) {
        error_setg(errp, "falcon: falcond at '%s' sent %d descriptors "
                   "instead of %d", path, nfds, WELCOME_FDS);
        return -1;
    }
    return 0;
}

static FalconShm *map_memory(int fd, uint64_t bytes, const char *path,
                             Error **errp)
{
    struct stat st;
    void *shm;

    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "falcon: cannot examine the memory of "
                         "'%s'", path);
        return NULL;
    }
    if (bytes < FALCON_CONTROL_BYTES || bytes > SHM_LIMIT_BYTES ||
        st.st_size < 0 || (uint64_t)st.st_size < bytes) {
        error_setg(errp, "falcon: the memory of '%s' has %" PRId64 " bytes, "
                   "but %" PRIu64 " are announced", path, (int64_t)st.st_size,
                   bytes);
        return NULL;
    }
    shm = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shm == MAP_FAILED) {
        error_setg_errno(errp, errno, "falcon: cannot map the memory of '%s'",
                         path);
        return NULL;
    }
    return shm;
}

static bool ring_in_bounds(const FalconConnection *conn, int index)
{
    uint64_t offset = conn->offset[index];
    uint64_t capacity = conn->capacity[index];
    int i;

    if (!is_power_of_2(capacity) || capacity < 4 * FALCON_FRAME_MAX_BYTES ||
        capacity > conn->shm_bytes || offset < FALCON_CONTROL_BYTES ||
        !QEMU_IS_ALIGNED(offset, RECORD_ALIGN) ||
        offset > conn->shm_bytes - capacity) {
        return false;
    }
    for (i = 0; i < index; i++) {
        if (offset < conn->offset[i] + conn->capacity[i] &&
            conn->offset[i] < offset + capacity) {
            return false;
        }
    }
    return true;
}

static bool ring_positions_sane(const FalconConnection *conn, int index)
{
    uint64_t tail = conn->tail[index];
    uint64_t head = conn->head[index];

    return tail - head <= conn->capacity[index] &&
           QEMU_IS_ALIGNED(tail, RECORD_ALIGN) &&
           QEMU_IS_ALIGNED(head, RECORD_ALIGN);
}

/*
 * The fixed words, and the positions that QEMU starts from, are copied here:
 * what is checked is what is used, whatever falcond writes in between.
 */
static int check_layout(FalconConnection *conn, const char *path, Error **errp)
{
    static const char *const names[] = { "ingress", "deliver", "egress" };
    FalconShm *shm = conn->shm;
    int i;

    QEMU_BUILD_BUG_ON(ARRAY_SIZE(names) != FALCON_RING_COUNT);

    if (shm->magic != FALCON_SHM_MAGIC) {
        error_setg(errp, "falcon: the memory of '%s' has the wrong magic "
                   "0x%016" PRIx64, path, shm->magic);
        return -1;
    }
    if (shm->version != FALCON_LAYOUT_VERSION) {
        error_setg(errp, "falcon: ring layout versions differ: this QEMU "
                   "speaks %u, the memory of '%s' has %u",
                   FALCON_LAYOUT_VERSION, path, shm->version);
        return -1;
    }
    if (shm->control_bytes != FALCON_CONTROL_BYTES ||
        shm->total_bytes != conn->shm_bytes) {
        error_setg(errp, "falcon: the memory of '%s' contradicts its "
                   "announced size", path);
        return -1;
    }
    for (i = 0; i < FALCON_RING_COUNT; i++) {
        conn->offset[i] = qatomic_read(&shm->ring[i].offset);
        conn->capacity[i] = qatomic_read(&shm->ring[i].capacity);
        if (!ring_in_bounds(conn, i)) {
            error_setg(errp, "falcon: the %s ring of '%s' has bad bounds "
                       "(offset %" PRIu64 ", capacity %" PRIu64 ")", names[i],
                       path, conn->offset[i], conn->capacity[i]);
            return -1;
        }
        conn->tail[i] = qatomic_read(&shm->ring[i].tail);
        conn->head[i] = qatomic_read(&shm->ring[i].head);
        if (!ring_positions_sane(conn, i)) {
            error_setg(errp, "falcon: the %s ring of '%s' has bad head and "
                       "tail", names[i], path);
            return -1;
        }
    }
    return 0;
}

static int take_over(FalconConnection *conn, const FalconWelcome *welcome,
                     const int *fds, const char *path, Error **errp)
{
    if (!g_unix_set_fd_nonblocking(fds[1], true, NULL) ||
        !g_unix_set_fd_nonblocking(fds[2], true, NULL)) {
        error_setg_errno(errp, errno, "falcon: cannot use the doorbells of "
                         "'%s'", path);
        return -1;
    }
    conn->shm = map_memory(fds[0], welcome->total_bytes, path, errp);
    if (!conn->shm) {
        return -1;
    }
    conn->shm_bytes = welcome->total_bytes;
    if (check_layout(conn, path, errp) < 0) {
        munmap(conn->shm, conn->shm_bytes);
        return -1;
    }
    /* The mapping keeps the memory; the descriptor is not needed any more. */
    close(fds[0]);
    conn->to_falcond = fds[1];
    conn->to_qemu = fds[2];
    return 0;
}

int falcon_connect(FalconConnection *conn, const char *path, Error **errp)
{
    int64_t deadline = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                       HANDSHAKE_LIMIT_MS;
    FalconWelcome welcome;
    int fds[WELCOME_FDS];
    int nfds = 0;
    int sock = open_socket(path, deadline, errp);

    if (sock < 0) {
        return -1;
    }
    if (send_hello(sock, path, errp) < 0 ||
        receive_welcome(sock, path, deadline, &welcome, fds, &nfds,
                        errp) < 0 ||
        check_welcome(&welcome, path, nfds, errp) < 0 ||
        take_over(conn, &welcome, fds, path, errp) < 0) {
        close_fds(fds, nfds);
        close(sock);
        return -1;
    }
    conn->sock = sock;
    return 0;
}

void falcon_disconnect(FalconConnection *conn)
{
    munmap(conn->shm, conn->shm_bytes);
    close(conn->to_falcond);
    close(conn->to_qemu);
    close(conn->sock);
}
