# The C types of tuples.py, for Cython. What is not here stays a Python object.
cimport cython


@cython.locals(
    count=Py_ssize_t, i=Py_ssize_t, size=Py_ssize_t, length=Py_ssize_t, end=Py_ssize_t, kind=cython.uint, row=list
)
cpdef tuple tuple_data(bytes data, Py_ssize_t pos)
