CREATE DATABASE overnight_ledger OWNER overnight;
