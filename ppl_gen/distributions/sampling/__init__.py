"""Exact sampling without computing anything twice: what each new element changes, and no more.

`record` writes down the operators of a network; `plan` follows each of its numbers to the elements
that it depends on, and so finds when it is known; `schedule` puts that in order, and `stream` does
both for sequences; `native` runs it in C++. Where that cannot be, `jacobi` draws all elements at
once, over and over. `reference` holds slow samplers, to compare with.
"""
