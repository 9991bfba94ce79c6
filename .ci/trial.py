"""What must hold where the wheel is installed and the checkout is not: `./run.sh package` runs this there."""

import pathlib
import sys
import tempfile
import time
import zipfile


def main(wheel: str) -> None:
    """Checks the wheel's contents, how long importing it takes, and trains something."""
    rooms = {name.split("/")[0].split("-")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert rooms == {"jaxdecouple"}, f"the wheel holds more than the library: {sorted(rooms)}"

    begun = time.perf_counter()
    import jaxdecouple as jd

    seconds = time.perf_counter() - begun
    assert seconds < 1.5, f"import jaxdecouple took {seconds:.1f} s"
    assert "site-packages" in jd.__file__, f"not the installed package, but {jd.__file__}"
    assert jd.__version__ in pathlib.Path(wheel).name, f"version {jd.__version__} in {wheel}"

    import flax.linen as nn
    import jax
    import optax

    jax.config.update("jax_num_cpu_devices", 2)
    digits = jd.data.load("digits")  # of the extra `data`
    x, y = digits.x_train.reshape(-1, 64) / 255.0, digits.y_train
    layers = [nn.Dense(64), nn.relu, nn.Dense(10)]
    pipeline = jd.Pipeline(jd.partition(layers, 2, sample=x[:64]), jd.schedules.fdg(2), optimizer=optax.adam(1e-2))
    state = pipeline.init(jax.random.key(0), x[:64])
    for batch in jd.data.epoch_batches(x, y, batch_size=64, seed=0, epoch=0):
        state, _ = pipeline.step(state, batch)
    accuracy = pipeline.evaluate(pipeline.flush(state), [(x, y)]).accuracy
    assert accuracy is not None and accuracy > 0.6, f"accuracy {accuracy}"

    times = jd.Times(forward=[1, 1], backward=[2, 2])
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder) / "timeline.png"
        jd.save_gantt(jd.timeline(jd.schedules.fdg(2), times), picture)  # of the extra `plots`
        assert picture.stat().st_size > 1000
    print(f"{pathlib.Path(wheel).name} works by itself; import jaxdecouple took {seconds:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
