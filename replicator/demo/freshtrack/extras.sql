-- Both sides, on request: keys from sequences, and a table without a key.

CREATE TABLE invoice_numbers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reference text NOT NULL
);

CREATE TABLE tickets (
    id bigserial PRIMARY KEY,
    payload text,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- No primary key and the default replica identity: once it is published, only INSERT works.
CREATE TABLE append_log (
    n bigint NOT NULL,
    text text
);
