"""The engine trains: it dispatches the operations of a schedule on the devices of the stages."""
