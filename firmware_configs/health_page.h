/*
 * The health page of edge_monitor: its layout, and a reader in one function.
 *
 * The page is a file in a tmpfs. Map it once, read-only and shared, and call em_health_page_read as
 * often as you like; the monitor never replaces the file. Needs C11, GCC or Clang, a little-endian
 * machine. The twin of this header is edge_monitor/sinks/health_page_layout.py.
 */
#ifndef EDGE_MONITOR_HEALTH_PAGE_H
#define EDGE_MONITOR_HEALTH_PAGE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the payload of the health page is little-endian"
#endif

#define EM_HEALTH_PAGE_FORMAT 2u

enum em_health_state {
    EM_STATE_OK = 0,
    EM_STATE_WARMING = 1,
    EM_STATE_NEVER_SEEN = 2,
    EM_STATE_WARN = 3,
    EM_STATE_STALE = 4,
    EM_STATE_FAIL = 5
};

/* Unknown numbers are NaN. The header of AUTOSAR E2E profile 4 is big-endian: use em_be16, em_be32. */
struct em_health_page {
    uint32_t sequence;         /* odd while the monitor writes */
    uint8_t e2e_length[2];     /* bytes from here to the end */
    uint8_t e2e_counter[2];    /* advances at every write */
    uint8_t e2e_data_id[4];    /* whose page this is */
    uint8_t e2e_crc[4];        /* CRC32P4 over everything from e2e_length on, but for itself */
    uint32_t format;           /* EM_HEALTH_PAGE_FORMAT */
    uint32_t state;            /* enum em_health_state */
    uint64_t instance;         /* new at every start of the monitor */
    uint64_t content_counter;  /* advances only with a new input: a frozen camera is no sign of life */
    int64_t frame;             /* -1: none yet */
    int64_t t_ns;              /* CLOCK_MONOTONIC of the report */
    uint64_t flags;            /* bit i: row i of the flag table is confirmed */
    double temporal_score;
    double spatial_score;
    double input_score;
    double evidence_ratio;     /* largest evidence over its threshold: 1 and more alarms */
    double consistency;
    double agreement;
    double rate_hz;
    int64_t latency_ns;
    double step_ns;            /* cost of the monitor's last step */
    uint64_t dropped_rows;     /* rows lost on the way to the monitor */
    uint64_t dropped_records;  /* inputs lost by the monitor's own sinks */
    uint32_t scanned_taps;     /* taps whose voxels the last spatial block holds; 0: none yet */
    uint32_t scan_period;      /* frames from the block before to it (TR); 0: not known yet */
    char worst_flag[32];       /* code of the most severe confirmed flag, padded with NUL; may be empty */
};

static_assert(sizeof(struct em_health_page) == 192, "the layout must hold no padding");

enum em_page_status {
    EM_PAGE_OK = 0,       /* new since the last read */
    EM_PAGE_REPEATED = 1, /* sound and in time, but not written since the last read */
    EM_PAGE_STALE = 2,    /* sound, but older than the deadline, or from before a reboot */
    EM_PAGE_TORN = 3,     /* the monitor was, or died, in the middle of it */
    EM_PAGE_CORRUPT = 4,  /* the CRC is wrong */
    EM_PAGE_FOREIGN = 5   /* another monitor's page, another layout, or none */
};

/* What a reader remembers; start with all zeros. */
struct em_page_reader {
    uint64_t instance;
    uint16_t counter;
    uint16_t has_read;
};

static inline uint16_t em_be16(const uint8_t *bytes) { return (uint16_t)(bytes[0] << 8 | bytes[1]); }

static inline uint32_t em_be32(const uint8_t *bytes) {
    return (uint32_t)em_be16(bytes) << 16 | em_be16(bytes + 2);
}

/* CRC-32 of AUTOSAR's profile 4, continued from `before` (0 at the start). */
static inline uint32_t em_crc32p4(uint32_t before, const uint8_t *bytes, size_t count) {
    uint32_t crc = ~before;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1u ? 0xC8DF352Fu : 0u);
        }
    }
    return ~crc;
}

static inline enum em_page_status em_page_snapshot(const struct em_health_page *mapped,
                                                   struct em_health_page *copy) {
    const size_t start = offsetof(struct em_health_page, e2e_length);
    const size_t length = sizeof *copy - start;
    const size_t before_crc = offsetof(struct em_health_page, e2e_crc) - start;
    const uint8_t *block = (const uint8_t *)copy + start;
    uint32_t before = __atomic_load_n(&mapped->sequence, __ATOMIC_ACQUIRE);
    memcpy(copy, mapped, sizeof *copy);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (before & 1u || before != __atomic_load_n(&mapped->sequence, __ATOMIC_RELAXED)) {
        return EM_PAGE_TORN;
    }
    if (em_be16(copy->e2e_length) != length) {
        return EM_PAGE_FOREIGN;
    }
    uint32_t crc = em_crc32p4(0, block, before_crc);
    crc = em_crc32p4(crc, block + before_crc + 4, length - before_crc - 4);
    return crc == em_be32(copy->e2e_crc) ? EM_PAGE_OK : EM_PAGE_CORRUPT;
}

/*
 * One look at the page. `now_ns` is CLOCK_MONOTONIC, `deadline_ns` the greatest age you accept.
 * `page` is to be used after EM_PAGE_OK and EM_PAGE_REPEATED, and with care after EM_PAGE_STALE.
 */
static inline enum em_page_status em_health_page_read(const struct em_health_page *mapped, uint32_t data_id,
                                                      int64_t now_ns, int64_t deadline_ns,
                                                      struct em_page_reader *reader,
                                                      struct em_health_page *page) {
    enum em_page_status status = EM_PAGE_TORN;
    for (int attempt = 0; attempt < 8 && status != EM_PAGE_OK; attempt++) {
        status = em_page_snapshot(mapped, page);
    }
    if (status != EM_PAGE_OK) {
        return status;
    }
    if (em_be32(page->e2e_data_id) != data_id || page->format != EM_HEALTH_PAGE_FORMAT) {
        return EM_PAGE_FOREIGN;
    }
    uint16_t counter = em_be16(page->e2e_counter);
    int64_t age_ns = now_ns - page->t_ns;
    if (age_ns < 0 || age_ns > deadline_ns) {
        status = EM_PAGE_STALE;
    } else if (reader->has_read && reader->instance == page->instance && reader->counter == counter) {
        status = EM_PAGE_REPEATED;
    }
    reader->instance = page->instance;
    reader->counter = counter;
    reader->has_read = 1;
    return status;
}

#endif
