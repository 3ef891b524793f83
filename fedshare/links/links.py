"""The interface of links: each is a network around another one."""

from fedshare.network import Network


class Links:
    """The way to the clients. With these, every client is there in every round; subclasses model others."""

    def around(self, network: Network, clients: int, seed: int, start: int) -> Network:
        """Return `network` as it is reached through these links, in the rounds after `start`.

        `clients` is the number of all clients. What happens in a round depends on the seed and the round alone, so a
        run that resumes after `start` meets the same. Raises UserError like `check`.
        """
        return network

    def check(self, clients: int) -> None:
        """Raise UserError if the links do not fit so many clients."""
