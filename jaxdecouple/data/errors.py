"""The error of this package: data, or a request for data, that cannot be used."""


class DataError(ValueError):
    """Data, or a request for data, that cannot be used; the message says what to give instead."""
