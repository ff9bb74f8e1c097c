/* Bucketize, for Python. */
#ifndef ERLESS_PYTHON_ROUTER_H
#define ERLESS_PYTHON_ROUTER_H

#include "python/binding.h"

int add_router(PyObject *module); /* 0: an error is set */

#endif
