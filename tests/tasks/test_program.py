"""What the compiler is told of a step."""

from bert_jax.tasks.program import compiler_options


def test_gpus_have_options_but_for_those_that_the_user_gave() -> None:
    ours = compiler_options("gpu", "")
    assert ours == {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
    given = compiler_options("gpu", "--xla_gpu_enable_triton_gemm=true --xla_gpu_autotune_level=4")
    assert given == {"xla_gpu_dot_merger_threshold_mb": 0}
    assert compiler_options("cpu", "") == compiler_options("tpu", "") == {}
