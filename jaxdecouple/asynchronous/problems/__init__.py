"""Problems: finite sums of losses over examples, as pytrees of data and pure functions of them."""
