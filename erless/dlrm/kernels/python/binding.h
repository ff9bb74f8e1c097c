/* What the files of the Python binding share.
 *
 * Buffers come in, buffers go out; the GIL is released while a kernel runs long. Callers
 * (erless/dlrm/rows.py, erless/dlrm/embedding.py) hand over C-contiguous arrays of the dtype named
 * in each docstring. Sizes are checked again here, so that no mistake above becomes a wild read. A
 * query that does not fit comes back as the tuple (kind, table, sample, position, value) of
 * `fault_t`. */
#ifndef ERLESS_BINDING_H
#define ERLESS_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "arithmetic/combine.h"
#include "arithmetic/ids.h"

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

/* How many numbers and words a form may have. */
typedef struct {
    int numbers, words;
} form_limit_t;

/* Take a tuple of `count` forms, each within its limits. Returns 0 with an error set. */
int take_forms(PyObject *tuple, Py_ssize_t count, const form_limit_t *limits, const char **forms);

/* Whether the two are equal; sets an error where not. */
int expect(const char *name, Py_ssize_t size, Py_ssize_t wanted);

/* Whether `size` is a * b; sets an error where not, also where the product is beyond 64 bits. */
int expect_product(const char *name, Py_ssize_t size, int64_t a, int64_t b);

/* How many bags each table has: `from` is a number of samples, or a buffer of begins. Lengths are
 * left out. Returns 0 with an error set and the view empty. */
int take_bags(PyObject *from, Py_buffer *view, int64_t tables, bags_t *bags);

/* The bags of a query whose `lengths` were taken, and `begins` too, where there are any. Returns 0
 * with an error set. */
int lengths_taken(const Py_buffer *lengths, const Py_buffer *begins, int64_t tables, bags_t *bags);

/* Whether the places of all tables' bags lie within `size` floats; sets an error where not. */
int places_fit(const place_t *places, const bags_t *bags, int64_t size);

ids_t ids_of(const Py_buffer *view);

/* The fault as a tuple, or NULL with MemoryError set. */
PyObject *fault_tuple(const fault_t *fault);

#endif
