/* What the files of the Python binding share. Buffers come in, buffers go out; the GIL is released
 * while a kernel runs long. Callers (erless/dlrm/rows.py, embedding.py) hand over C-contiguous
 * arrays of the dtype named in each docstring; sizes are checked again, so that no mistake above
 * becomes a wild read. A query that does not fit comes back as the tuple (kind, table, sample,
 * position, value) of `fault_t`.
 *
 * module.c      the module
 * py_index.c    row index and packing
 * py_router.c   bucketize
 * py_split.c    what it gives: a query by shard; requests to shards and their answers
 * py_pooler.c   gather-pool
 * py_combine.c  combine
 * py_lane.c     a sparse function's fast lane */
#ifndef ERLESS_BINDING_H
#define ERLESS_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

/* An argument: items of `itemsize` bytes (0: 4 or 8). */
typedef struct {
    const char *name;
    Py_ssize_t itemsize;
    int writable, optional; /* optional: None leaves the view empty */
} buffer_t;

/* Take one buffer. Returns its number of items, or -1 with an error set and the view empty. */
Py_ssize_t take(PyObject *from, Py_buffer *view, Py_ssize_t itemsize, int writable,
                const char *name);
/* Take `count` arguments of `given`. Returns 0 with an error set and nothing taken. */
int take_all(PyObject *const *args, Py_ssize_t given, int count, Py_buffer *views,
             Py_ssize_t *sizes, const buffer_t *wanted);
void release_all(Py_buffer *views, int count);

/* Whether the two are equal; sets an error where not. */
int expect(const char *name, Py_ssize_t found, Py_ssize_t wanted);
ids_t ids_of(const Py_buffer *view);
PyObject *fault_tuple(const fault_t *fault);
int64_t blocks_for(int64_t rows);

/* Check that `places` (count, 3) lies within rows of `stride`. Returns the width of all, or -1. */
int64_t places_width(const place_t *places, Py_ssize_t count, int64_t stride);

typedef struct {
    PyObject_HEAD
    int64_t count;
    slice_t *slices;
    Py_buffer *views; /* rows and blocks of each slice */
} Pooler;

typedef struct {
    PyObject_HEAD
    routing_t routing;
    Py_buffer *tables, slots, widths;
    PyObject *poolers;    /* keeps the homes' rows alive */
    home_t *homes;        /* their words are ours */
    int64_t *rows, width; /* width: tables of all shards together */
} Router;

/* A query's ids by shard, and what it found at home. The arrays are bytes objects, which Python
 * may look at. */
typedef struct {
    PyObject_HEAD
    Router *router;
    kept_t kept; /* its rows are given back once they are pooled */
    int64_t samples, found;
    int weighted, wide;
    PyObject *arrays[4]; /* starts, lengths, values, weights or NULL */
    int64_t *starts;
    int32_t *lengths;
    void *values;
    float *weights;
} Split;

/* Room for a query of `size` ids; NULL with an error set. */
Split *split_new(Router *router, int64_t size, int64_t samples, int weighted);
/* Room for the `away` ids that leave; 0 with an error set. */
int split_room(Split *self, int64_t away, int wide);
/* A tuple of `count` forms of at most `numbers` numbers each; 0 with an error set. */
int take_forms(PyObject *tuple, Py_ssize_t count, int numbers, const char **forms);

extern PyTypeObject *pooler_type;
extern PyMethodDef index_functions[], combine_functions[];
int add_pooler(PyObject *module), add_router(PyObject *module), add_split(PyObject *module),
    add_fast_path(PyObject *module); /* 0: an error is set */

#endif
