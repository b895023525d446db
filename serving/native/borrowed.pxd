"""What Cython's own declarations of Python lack: borrowed references as pointers, and a word to the memory."""

from cpython.object cimport PyObject


cdef extern from "Python.h":
    PyObject* PyDict_GetItemWithError(object dictionary, object key) except? NULL
    int PyUnicode_Compare(object left, object right) except? -1
    PyObject* PyList_GET_ITEM(list of, Py_ssize_t at)


cdef extern from *:
    """
    #if defined(__GNUC__)
    #define NIGHTJAR_FETCH(place) __builtin_prefetch(place)
    #else
    #define NIGHTJAR_FETCH(place) ((void)(place))
    #endif
    """
    void soon "NIGHTJAR_FETCH"(const void* place) nogil  # it is looked at soon: let the memory begin to bring it
