/* A query, split by shard, for Python. */
#ifndef ERLESS_PYTHON_SPLIT_H
#define ERLESS_PYTHON_SPLIT_H

#include "arithmetic/route.h"
#include "python/binding.h"

/* A query's ids by shard, and what it found at home. The arrays are bytes objects, which Python may
 * look at. */
typedef struct {
    PyObject_HEAD
    PyObject *owner;          /* keeps `routing` alive */
    const routing_t *routing; /* that split the query */
    kept_t kept;              /* its rows are given back once they are pooled */
    bags_t bags;              /* of the query; its lengths are not ours */
    int64_t at_home;          /* rows that were kept, also once they are given back */
    int weighted, wide;
    PyObject *arrays[5]; /* starts, lengths, values, weights or NULL, bag_starts */
    int64_t *starts, *bag_starts;
    int32_t *lengths;
    void *values;
    float *weights;
} Split;

/* Room for a query of `size` ids; NULL with an error set. */
Split *split_new(PyObject *owner, const routing_t *routing, int64_t size, const bags_t *bags,
                 int weighted);

/* Room for the `away` ids that leave; 0 with an error set. */
int split_room(Split *self, int64_t away, int wide);

int add_split(PyObject *module); /* 0: an error is set */

#endif
