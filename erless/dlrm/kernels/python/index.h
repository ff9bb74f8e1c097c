/* Row index and packing, for Python. */
#ifndef ERLESS_PYTHON_INDEX_H
#define ERLESS_PYTHON_INDEX_H

#include "python/binding.h"

extern PyMethodDef index_functions[];

#endif
