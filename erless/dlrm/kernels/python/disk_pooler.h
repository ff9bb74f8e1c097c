/* Gather-pool of rows on a disk, for Python. */
#ifndef ERLESS_PYTHON_DISK_POOLER_H
#define ERLESS_PYTHON_DISK_POOLER_H

#include "python/binding.h"

int add_disk_pooler(PyObject *module); /* 0: an error is set */
extern PyMethodDef disk_functions[];

#endif
