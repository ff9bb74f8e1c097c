/* Row ids as they arrive, and what is said of a query that does not fit.
 *
 * No function of the arithmetic trusts an id: each is compared with its table before it becomes an
 * address. A function that meets a bad one fills in a `fault_t`, and the caller names the table,
 * the sample and the value. */
#ifndef ERLESS_IDS_H
#define ERLESS_IDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Ids arrive as int32 or int64. */
typedef struct {
    const void *data;
    int64_t size;
    int wide; /* whether they are int64 */
} ids_t;

static inline int64_t id_at(const ids_t *ids, int64_t i) {
    return ids->wide ? ((const int64_t *)ids->data)[i] : ((const int32_t *)ids->data)[i];
}

static inline size_t id_width(const ids_t *ids) {
    return ids->wide ? sizeof(int64_t) : sizeof(int32_t);
}

enum { MAX_IDS = INT32_MAX }; /* in one query: counters of ids have 32 bits */

/* How many ids each bag has, table by table. Each table has `samples` bags, or, where `begins` is
 * there, those from begins[t] to begins[t + 1]. */
typedef struct {
    const int32_t *lengths;
    int64_t tables, samples;
    const int64_t *begins; /* (tables + 1), ascending from 0, or NULL */
} bags_t;

static inline int64_t bags_before(const bags_t *bags, int64_t t) {
    return bags->begins ? bags->begins[t] : t * bags->samples;
}

static inline int64_t bags_of(const bags_t *bags, int64_t t) {
    return bags->begins ? bags->begins[t + 1] - bags->begins[t] : bags->samples;
}

/* The lengths of table t's bags. */
static inline const int32_t *lengths_in(const bags_t *bags, int64_t t) {
    return bags->lengths + bags_before(bags, t);
}

enum { /* fault_t.kind; erless/dlrm/query_arrays.py has the same names */
       FAULT_NONE = 0,
       FAULT_RANGE,      /* the id is not a row of the table */
       FAULT_ABSENT,     /* it is a row, but not one stored here or routed anywhere */
       FAULT_LENGTH,     /* a bag's length is negative */
       FAULT_TOTAL,      /* the lengths do not sum to the number of ids; value is their sum */
       FAULT_MEMORY,     /* the allocator refused */
       FAULT_UNWEIGHTED, /* the table pools by weighted sum, and the query has no weights */
       FAULT_SIZE,       /* value ids are more than MAX_IDS */
};

typedef struct {
    int kind;
    int64_t table;    /* of `bags` */
    int64_t sample;   /* the bag among those of its table */
    int64_t position; /* index into `values` */
    int64_t value;    /* the id, length, sum or number that does not fit */
} fault_t;

/* Whether all lengths are at least zero and sum to the number of ids. */
int lengths_fit(const bags_t *bags, int64_t size, fault_t *fault);

#endif
