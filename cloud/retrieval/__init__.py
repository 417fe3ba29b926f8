"""The stage that retrieves candidates, and its channels. The indexes that channels search are in `vectors`."""

from pocketrank.cloud.retrieval.channels import Channel, ChannelConfig

__all__ = ["Channel", "ChannelConfig"]
