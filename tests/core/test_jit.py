from glacier_fastai.core.jit import jit


def test_works_where_no_compiled_code_can_be_kept():
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)  # has no file that numba could write beside
    assert jit(namespace["double"])(4) == 8
