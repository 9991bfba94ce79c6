"""Bad inputs, one a line: each ends with one line that says what was given and what to write, and leaves no file.

A line is a program, its flags, and what is to be found in the message. {data} is a directory of odd data.
"""

import importlib

import numpy as np
import pytest

TABLE = """
train | --method=fgd | unknown method 'fgd'; did you mean 'fdg'
train | --method= | unknown method ''
train | --method=FDG2 | did you mean 'fdg'
train | --model=resnt20 | unknown model 'resnt20'; did you mean 'resnet20'
train | --model=resnet21 | depth is 21
train | --model=resnet0 | depth
train | --dtype=float16 | unknown dtype 'float16'; did you mean 'bfloat16'
train | --optimizer=sdg | did you mean 'sgd'
train | --decay=steps | did you mean 'step'
train | --normalise=channel | did you mean 'channels'
train | --order=sideways --method=fdg | write one of forward_first
train | --weights=old | write one of stash
train | --num_stages=0 | num_stages is 0; write at least 1
train | --num_stages=-3 | num_stages is -3; write at least 1
train | --epochs=0 | epochs is 0; write at least 1
train | --epochs=-1 | epochs is -1
train | --batch_size=0 | batch_size is 0
train | --eval_batch_size=0 | eval_batch_size is 0
train | --accumulate=-1 | accumulate is -1; write at least 0
train | --method=auto --counters=global | counters is global, but method auto finds its delays
train | --direction_batches=50 | direction_batches is 50, but diagnose_every is 0
train | --diagnose_every=-1 | diagnose_every is -1; write at least 0
train | --image_size=-1 | image_size is -1
train | --data_threads=-1 | data_threads is -1
train | --save_every=-1 | save_every is -1; write at least 0
train | --keep=0 | keep is 0; write at least 1
train | --seed=-1 | seed is -1; write at least 0 and below 4294967296
train | --seed=4294967296 | write at least 0 and below 4294967296
train | --seed=99999999999999999999 | write at least 0 and below
train | --beta=0 | beta is 0.0
train | --beta=1.5 | beta is 1.5
train | --beta=nan | beta is nan
train | --beta=1.2 | beta is 1.2
train | --learning_rate=0 | learning_rate is 0.0; write a number above 0
train | --learning_rate=-1 | learning_rate is -1.0
train | --learning_rate=inf | learning_rate is inf
train | --learning_rate=nan | learning_rate is nan
train | --momentum=1 | momentum is 1.0; write a number of at least 0 and below 1
train | --momentum=1.5 | momentum is 1.5
train | --momentum=-0.1 | momentum is -0.1
train | --weight_decay=-1 | weight_decay is -1.0; write a number of at least 0
train | --weight_decay=inf | weight_decay is inf
train | --decay_factor=0 | decay_factor is 0.0
train | --decay_epochs=a | decay_epochs is 'a'; write numbers above 0 with commas between
train | --decay_epochs=5,2 | write increasing epochs
train | --decay_epochs=2,2 | write increasing epochs
train | --decay_epochs=-1 | decay_epochs is '-1'
train | --decay_epochs=100,200 | the run has 10 epochs; write epochs below that
train | --decay=cosine --decay_epochs=1 | decay cosine has no such setting; write --decay=step
train | --decay=constant --decay_factor=0.5 | decay constant has no such setting
train | --decay_power=3 | decay step has no such setting; write --decay=polynomial
train | --decay=polynomial --decay_power=0 | decay_power is 0.0
train | --warmup_epochs=50 | the run has 10 epochs; write at most that many
train | --warmup_epochs=-1 | warmup_epochs is -1.0
train | --warmup_epochs=nan | warmup_epochs is nan
train | --warmup_rate=0.1 | warmup_rate is 0.1, but warmup_epochs is 0
train | --norm_sample=5 | optimizer sgd has no such setting; write --optimizer=clars
train | --optimizer=lars --norm_sample=5 | optimizer lars has no such setting
train | --optimizer=clars --norm_sample=200 | batches have 128 examples
train | --eta=0.1 | optimizer sgd has no such setting; write --optimizer=lars or clars
train | --noscale_biases | optimizer sgd has no such setting
train | --optimizer=lars --eta=-1 | eta is -1.0
train | --auxiliary_learning_rate=0.1 | method fdg has no auxiliary networks
train | --method=dgl --auxiliary_learning_rate=-1 | auxiliary_learning_rate is -1.0
train | --method=dgl --beta=0.5 | pass no gradients on
train | --method=dni --optimizer=clars | gradient norms are not measured under dni
train | --method=ddg --order=backward_first | method ddg has no such setting
train | --method=backprop --weights=stash | method backprop has no such setting
train | --method=fdg --p=1,0 --m=2,0 | method fdg has no such setting
train | --method=fdg --jitter=0.1 | method fdg has no such setting
train | --method=auto --jitter=-1 | jitter is -1.0
train | --method=auto --order=forward_first | method auto has no such setting
train | --method=dsp --p=x --m=2,0 | p is 'x'; write integers with commas between
train | --method=dsp --p=1,0 | with num_stages=2, write both
train | --method=dsp --p=1,0 --m=1,0 | write m_0 >= 2
train | --method=dsp --p=1,0,0 --m=4,2,0 | with num_stages=2
train | --method=dsp --p=-1,0 --m=2,0 | p
train | --boundaries=x | boundaries is 'x'; write integers
train | --boundaries=1,2 | write 1 boundaries
train | --num_stages=3 --boundaries=2,9 --model=mlp | boundaries (2, 9)
train | --boundaries=99 --model=mlp | boundaries
train | --boundaries=0 --model=mlp | boundaries
train | --num_stages=4 --boundaries=1 | write 3 boundaries
train | --num_stages=9 --model=mlp | num_stages is 9
train | --accumulate=500 --model=mlp | no update would be made
train | --dataset=digit | did you mean 'digits'
train | --dataset= | unknown data set ''
train | --dataset=npz: | names no path; write 'npz:PATH'
train | --dataset=npz:{data}/nowhere.npz | there is no file
train | --dataset=npz:{data}/text.npz | is not a readable npz file
train | --dataset=npz:{data}/lone.npz | is not a readable npz file
train | --dataset=npz:{data}/half.npz | lacks y_train, x_test, y_test
train | --dataset=npz:{data}/first.npz | channels first
train | --dataset=npz:{data}/two_scales.npz | as if on two scales
train | --dataset=npz:{data}/int.npz | has type int64; images are uint8
train | --dataset=npz:{data}/nan.npz | holds NaN or infinite values
train | --dataset=npz:{data}/words.npz | labels are integer class numbers
train | --dataset=npz:{data}/many.npz | number the classes from 0
train | --dataset=npz:{data}/negative.npz | has labels from -1
train | --dataset=npz:{data}/one.npz --model=mlp | one class alone
train | --dataset=npz:{data}/short.npz | expected one label per image
train | --dataset=npz:{data}/sizes.npz | training and test images differ
train | --dataset=npz:{data}/objects.npz | is not a readable npz file
train | --dataset=folder:{data}/nowhere | there is no directory
train | --dataset=folder:{data}/empty | holds no class directories
train | --dataset=folder:{data}/bare | holds no .png, .jpg, .jpeg files
train | --dataset=streamed:{data}/nowhere | there is no directory
train | --dataset=tiny_imagenet:{data}/nowhere | wnids.txt cannot be read
train | --image_size=9 | the images of digits have 8 x 8 pixels
train | --model=vgg11 | at least 32x32 pixels
train | --normalise=fdg | for colour images
train | --init_from={data}/nowhere.msgpack --model=mlp | cannot be read
train | --init_from={data}/text.npz --model=mlp | no file of exported variables
compare | --methods=fgd | methods names 'fgd'
compare | --batch_size=6 | write a multiple of 4
compare | --seeds=0 | write at least 1
compare | --repeats=0 | write at least 1
compare | --model=resnt8 | did you mean 'resnet8'
compare | --learning_rate=-1 | learning_rate is -1.0
compare | --epochs=0 | epochs is 0
benchmark | --methods=fgd | unknown method 'fgd'; did you mean 'fdg'
benchmark | --model=resnt20 | did you mean 'resnet20'
benchmark | --dtype=float64 | unknown dtype 'float64'
benchmark | --batch_size=6 | which gpipe splits into 4 micro-batches
benchmark | --image_size=0 | image_size is 0; write at least 1
benchmark | --num_classes=0 | num_classes is 0
benchmark | --repeats=0 | repeats is 0
benchmark | --seconds=0 | seconds is 0.0; write a number above 0
benchmark | --seconds=inf | seconds is inf
benchmark | --model=mlp --num_stages=9 | num_stages is 9
benchmark | --boundaries=a | boundaries is 'a'; write integers
benchmark | --model=mlp --boundaries=1,2 | write 1 boundaries
plan | --model=resnet19 | unknown model 'resnet19'
plan | --num_stages= | write one or several numbers
plan | --num_stages=0 | num_stages is '0'; write integers of at least 1
plan | --num_stages=a | num_stages is 'a'; write integers
plan | --model=mlp --num_stages=99 | can be cut into
plan | --batch_size=0 | batch_size is 0
plan | --image_size=0 | image_size is 0
plan | --bandwidth=-1 | bandwidth is -1.0
plan | --bandwidth=nan | bandwidth is nan
plan | --jitter=-1 | jitter is -1.0
plan | --weights=old | unknown weights 'old'
plan | --model=mlp --num_stages=2 --profile={data}/nowhere.json | nowhere.json
plan | --model=mlp --num_stages=2 --profile={data}/text.npz | text.npz
evaluate | | checkpoint is not given
evaluate | --checkpoint={data}/nowhere | there is no checkpoint
evaluate | --checkpoint={data}/empty | is no checkpoint
evaluate | --checkpoint={data}/empty --predictions=x.txt | write a file that ends in .csv or .npz
export | | checkpoint is not given
export | --checkpoint={data}/nowhere | there is no checkpoint
measure.checkpoint_cost | --methods=fgd | unknown method 'fgd'
measure.checkpoint_cost | --every=1 | every is 1; write at least 2
measure.checkpoint_cost | --image_size=3 | image_size is 3; write at least 4
measure.checkpoint_cost | --repeats=0 | repeats is 0
measure.diagnostics_cost | --methods=auto | unknown method 'auto'
measure.diagnostics_cost | --num_stages=x | num_stages is 'x'; write integers
measure.diagnostics_cost | --num_stages=0 | write integers of at least 1
measure.diagnostics_cost | --every=0 | every is 0
measure.diagnostics_cost | --seconds=-1 | seconds is -1.0
measure.kills | --kills=0 | write at least 1
measure.kills | --jobs=0 | write at least 1
large_batch.layer_rates | --model=resnet20 | unknown model 'resnet20'; did you mean 'resnet8'
large_batch.layer_rates | --rates= | rates is ''; write numbers above 0
large_batch.layer_rates | --rates=0.1,0.1 | rates is '0.1,0.1'; write numbers above 0, increasing, each once
large_batch.layer_rates | --rates=-1 | rates is '-1'; write numbers above 0
large_batch.layer_rates | --rates=0.1,ten | rates is '0.1,ten'; write numbers above 0 with commas between, such as 0.01
large_batch.layer_rates | --base_rate=0 | base_rate is 0.0; write a number above 0
large_batch.layer_rates | --target=-1 | target is -1.0; write a number of at least 0
large_batch.layer_rates | --divergence=1 | divergence is 1.0; write a number above 1
large_batch.layer_rates | --momentum=1 | momentum is 1.0; write a number of at least 0 and below 1
large_batch.layer_rates | --epochs=0 | epochs is 0; write at least 1
large_batch.layer_rates | --num_examples=2000 | num_examples is 2000, but digits has 1437 training images
large_batch.layer_rates | --num_examples=100 | batch_size is 128, but there are 100 training images; write 100
large_batch.gradient_variance | --model=resnet | unknown model 'resnet'; did you mean 'resnet8'
large_batch.gradient_variance | --learning_rate=nan | learning_rate is nan
large_batch.gradient_variance | --norm_sample=1 | norm_sample is 1; write at least 2, or 0
large_batch.gradient_variance | --norm_sample=500 --num_examples=300 | norm_sample is 500, but there are 300
large_batch.gradient_variance | --chunk_size=0 | chunk_size is 0; write at least 1
large_batch.warmup | --batch_size=600 | batch_size is 600; write a multiple of chunk_size, 512
large_batch.warmup | --batch_size=4096 | batch_size is 4096, but there are 1437 training images
large_batch.warmup | --etas=0,1 | etas is '0,1'; write numbers above 0 with commas between
large_batch.warmup | --etas=x | etas is 'x'; write numbers above 0
large_batch.warmup | --warmups=-1 | warmups is '-1'; write numbers of at least 0
large_batch.warmup | --warmups=30 | the run has 20 epochs; write at most that many
large_batch.warmup | --shrink=9 | shrink is 9, but images have 8 x 8 pixels
large_batch.warmup | --num_tests=1000 | num_tests is 1000, but digits has 360; write at most that
large_batch.warmup | --base_rate=-1 | base_rate is -1.0; write a number above 0
large_batch.batch_scaling | --batch_sizes=64,x | batch_sizes is '64,x'; write integers above 0 with commas between
large_batch.batch_scaling | --eta=-1 | eta is -1.0; write a number of at least 0
large_batch.cost | --batch_size=100 --chunk_size=64 | batch_size is 100 and chunk_size 64; write a multiple
large_batch.cost | --norm_sample=1000 | norm_sample is 1000, but batches have 512 examples
large_batch.cost | --repeats=0 | repeats is 0; write at least 1
papers.__main__ | | no paper is given; write one of fdg, adl, dsp, thesis
papers.__main__ | fdl | unknown paper 'fdl'; did you mean 'fdg'
papers.__main__ | fdg --row=table3/resnet56/fdg_beta5 | no row 'table3/resnet56/fdg_beta5'; did you mean
papers.__main__ | fdg --row=table3/resnet56/fdg_beta5 | 'table3/resnet56/fdg_beta0.5'
papers.__main__ | fdg --row=table33 | did you mean 'table3'
papers.__main__ | fdg --scale=big | unknown scale 'big'; write one of: small, medium, paper
papers.__main__ | fdg --seeds=0,-1 | seeds is '0,-1'; write integers of at least 0
papers.__main__ | fdg --scale=small --epochs=-1 | epochs is -1; write at least 1, or 0
"""
ROWS = [[cell.strip() for cell in line.split("|", 2)] for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 8, 8), np.uint8), np.arange(12) % 3
    whole = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    odd = {
        "first": {name: random.integers(0, 256, (12, 3, 8, 8), np.uint8) for name in ("x_train", "x_test")},
        "two_scales": {"x_train": images / 255, "x_test": images / 1.0},
        "int": {"x_train": images.astype(np.int64)},
        "nan": {name: np.full(images.shape, np.nan) for name in ("x_train", "x_test")},
        "words": {"y_train": np.array(list("abcdefghijkl"))},
        "many": {"y_train": labels * 450_000},
        "negative": {"y_test": labels - 1},
        "one": {"y_train": labels * 0, "y_test": labels * 0},
        "short": {"y_train": labels[:5]},
        "sizes": {"x_test": images[:, :7]},
        "objects": {"x_train": np.array([{}] * 12)},
    }
    for name, changes in odd.items():
        np.savez(root / f"{name}.npz", **{**whole, **changes})
    np.savez(root / "half.npz", x_train=images)
    (root / "text.npz").write_text("no archive")
    with (root / "lone.npz").open("wb") as file:
        np.save(file, images)
    for name in ("empty/train", "empty/test", "bare/train/a", "bare/test/a"):
        (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(("program", "flags", "says"), ROWS, ids=[f"{program} {flags}" for program, flags, _ in ROWS])
def test_is_refused_in_one_line(program, flags, says, data, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"experiments.{program}")
    done = call(
        module, *flags.format(data=data).split(), *([] if program in ("evaluate", "export") else ["--workdir=run"])
    )
    assert done.status == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done
    assert says in done.stderr
    assert not any(tmp_path.iterdir())
