/* A sparse function's end of the fast lane, for Python. */
#ifndef ERLESS_PYTHON_FAST_PATH_H
#define ERLESS_PYTHON_FAST_PATH_H

#include "python/binding.h"

int add_fast_path(PyObject *module); /* 0: an error is set */

#endif
