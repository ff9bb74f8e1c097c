/* A patch, for Python. */
#ifndef ERLESS_PYTHON_PATCH_H
#define ERLESS_PYTHON_PATCH_H

#include "arithmetic/patch.h"
#include "python/binding.h"

/* The patch of `object`, which must be of as many stored rows, each of `row_bytes`; NULL with an
 * error set. */
const patch_t *patch_of(PyObject *object, int64_t stored, int64_t row_bytes);

int add_patch(PyObject *module); /* 0: an error is set */

#endif
