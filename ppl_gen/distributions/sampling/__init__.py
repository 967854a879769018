"""Exact sampling without computing anything twice: what each new element changes, and no more.

`record` writes down the operators of a network; `plan` follows each of its numbers to the elements
that it depends on, and so finds when it is known; `schedule` puts that in order; the schedule is
run by C++ (`native`) or, slowly and for comparison, by NumPy (`reference`).
"""
