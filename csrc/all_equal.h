// all_equal(function, items, values): whether list(map(function, items)) == values, without making the list. A step
// asks this of the addresses, strides and sizes of all tensors, which takes longer than the update of small ones.
#pragma once

#include <Python.h>

namespace sasgd {

inline PyObject* all_equal(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyList_Check(args[1]) || !PyList_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "all_equal: want a function and two lists");
    return nullptr;
  }
  PyObject *items = args[1], *values = args[2];
  bool equal = PyList_GET_SIZE(items) == PyList_GET_SIZE(values);
  // The function may run anything, which may change the lists.
  for (Py_ssize_t i = 0; equal && i < PyList_GET_SIZE(items) && i < PyList_GET_SIZE(values); ++i) {
    PyObject *item = Py_NewRef(PyList_GET_ITEM(items, i)), *value = Py_NewRef(PyList_GET_ITEM(values, i));
    PyObject* got = PyObject_Vectorcall(args[0], &item, 1, nullptr);
    const int same = got ? PyObject_RichCompareBool(got, value, Py_EQ) : -1;
    Py_XDECREF(got);
    Py_DECREF(item);
    Py_DECREF(value);
    if (same < 0) return nullptr;
    equal = same;
  }
  return PyBool_FromLong(equal);
}

inline PyMethodDef kAllEqual = {"all_equal", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&all_equal)),
                                METH_FASTCALL, "Whether list(map(function, items)) == values."};

}  // namespace sasgd
