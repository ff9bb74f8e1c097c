/* The Python module `erless.dlrm._kernels`: the compiled arithmetic of erless.
 *
 *   arithmetic/  row index, bucketize, rows at home, gather-pool, combine
 *   disk/        rows that lie on a disk: reads, cache, look-up
 *   fast_lane/   messages between gateway and functions, read and written byte for byte
 *   python/      the binding; nothing below it touches Python, so all of it runs without the GIL
 *
 * Each folder uses only those above it in this list, and no two files use each other
 * (tests/dlrm/kernels/test_layers.py). */
#include "arithmetic/gather.h"
#include "arithmetic/index.h"
#include "arithmetic/route.h"
#include "disk/engine.h"
#include "python/binding.h"
#include "python/combine.h"
#include "python/disk_pooler.h"
#include "python/fast_path.h"
#include "python/index.h"
#include "python/patch.h"
#include "python/pooler.h"
#include "python/router.h"
#include "python/shard_channel.h"
#include "python/split.h"

/* Numbers that Python gives names (erless/dlrm/rows.py, erless/dlrm/embedding.py). */
static const struct {
    const char *name;
    long value;
} constants[] = {
    {"FAULT_RANGE", FAULT_RANGE},
    {"FAULT_ABSENT", FAULT_ABSENT},
    {"FAULT_LENGTH", FAULT_LENGTH},
    {"FAULT_TOTAL", FAULT_TOTAL},
    {"FAULT_UNWEIGHTED", FAULT_UNWEIGHTED},
    {"FAULT_SIZE", FAULT_SIZE},
    {"PRECISION_FP32", FP32},
    {"PRECISION_FP16", FP16},
    {"PRECISION_INT8", INT8},
    {"PRECISION_INT4", INT4},
    {"POOLING_SUM", SUM},
    {"POOLING_MAX", MAX},
    {"POOLING_WEIGHTED", WEIGHTED},
    {"POOLING_MEAN", MEAN},
    {"INDEX_ROWS", INDEX_ROWS},
    {"INDEX_WORDS", INDEX_WORDS},
    {"MAX_SHARDS", MAX_SHARDS},
    {"MAX_IDS", MAX_IDS},
    {"DISK_BLOCK", DISK_BLOCK},
    {"ENGINE_AUTO", ENGINE_AUTO},
    {"ENGINE_PREAD", ENGINE_PREAD},
    {"ENGINE_URING", ENGINE_URING},
    {"READ_FAILED", READ_FAILED},
    {"READ_SHORT", READ_SHORT},
    {"READ_ALTERED", READ_ALTERED},
    {"ANSWER_GENERAL", ANSWER_GENERAL},
    {"ANSWER_INCOMPLETE", ANSWER_INCOMPLETE},
};

static int add_constants(PyObject *module) {
    for (size_t k = 0; k < sizeof(constants) / sizeof(*constants); k++)
        if (PyModule_AddIntConstant(module, constants[k].name, constants[k].value) < 0) return 0;
    return PyModule_AddStringConstant(module, "INSTRUCTION_SET", gather_choose()) == 0;
}

static int start(PyObject *module) {
    const int added = add_constants(module) && add_patch(module) && add_pooler(module) &&
                      add_disk_pooler(module) && add_shard_channel(module) && add_split(module) &&
                      add_router(module) && add_fast_path(module) &&
                      PyModule_AddFunctions(module, index_functions) == 0 &&
                      PyModule_AddFunctions(module, combine_functions) == 0 &&
                      PyModule_AddFunctions(module, disk_functions) == 0;
    return added ? 0 : -1;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, start}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_kernels",
    "Row index, bucketize, gather-pool, combine: compiled.",
    0,
    NULL,
    module_slots,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) {
    return PyModuleDef_Init(&definition);
}
