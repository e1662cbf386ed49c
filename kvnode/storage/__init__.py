"""The disk: log segments, the data directory, the store's backends. Every file call goes through one `Disk` port."""
