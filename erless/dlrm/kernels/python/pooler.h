/* Gather-pool, for Python. */
#ifndef ERLESS_PYTHON_POOLER_H
#define ERLESS_PYTHON_POOLER_H

#include "arithmetic/gather.h"
#include "python/binding.h"
#include "python/patch.h"

/* The slices of one shard. */
typedef struct {
    PyObject_HEAD
    int64_t count;
    slice_t *slices;
    Py_buffer *views; /* rows and blocks of each slice */
    PyObject *given;  /* keeps the patches alive */
} Pooler;

extern PyTypeObject *pooler_type;
int add_pooler(PyObject *module); /* 0: an error is set */

#endif
