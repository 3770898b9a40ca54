"""Banks that are changed a little, and people of them."""

from hypothesis import strategies as st

names = st.text("abcdefgh", min_size=1, max_size=4)
plain = st.one_of(
    st.lists(names, min_size=1, max_size=4, unique=True).map(lambda v: {"kind": "uniform", "values": v}),
    st.floats(0, 1).map(lambda p: {"kind": "bernoulli", "p": p}),
    st.tuples(st.integers(0, 50), st.integers(0, 30)).map(
        lambda t: {"kind": "truncated_normal", "mean": t[0], "std": 10, "min": t[0] - 5, "max": t[0] + t[1]}
    ),
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
        lambda w: {"kind": "categorical", "shares": {f"v{i}": x / sum(w) for i, x in enumerate(w)}}
    ),
)
