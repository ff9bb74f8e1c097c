/* Combine, for Python. */
#ifndef ERLESS_PYTHON_COMBINE_H
#define ERLESS_PYTHON_COMBINE_H

#include "python/binding.h"

extern PyMethodDef combine_functions[];

#endif
