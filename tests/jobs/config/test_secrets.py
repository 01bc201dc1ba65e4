import pytest

from jobs.config.secrets import is_secret, masked


@pytest.mark.parametrize(
    "name",
    [
        "redis_password",
        "LTE_PUBLISH__REDIS_PASSWORD",
        # S3
        "spark.hadoop.fs.s3a.access.key",
        "spark.hadoop.fs.s3a.secret.key",
        "fs.s3a.bucket.mine.session.token",
        "fs.s3a.encryption.key",
        "fs.s3a.server-side-encryption.key",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        # Azure
        "fs.azure.account.key.shop.dfs.core.windows.net",
        "fs.azure.sas.lake.shop.blob.core.windows.net",
        "fs.azure.sas.fixed.token.shop.dfs.core.windows.net",
        "fs.azure.account.oauth2.client.secret",
        "fs.azure.account.oauth2.refresh.token",
        "fs.azure.account.oauth2.user.password",
        "fs.azure.encryption.encoded.client-provided-key",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        # Google
        "fs.gs.auth.service.account.private.key",
        "fs.gs.auth.service.account.private.key.id",
        "fs.gs.auth.client.secret",
        "fs.gs.encryption.key",
        "google_service_account_key",
        # Spark and Java
        "spark.ssl.keyPassword",
        "spark.authenticate.secret",
        "javax.net.ssl.trustStorePassword",
        "PGPASSWORD",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    # Put together at run time: no file of this project holds something that looks like a secret.
    value = "".join(("Hu", "sh7"))
    for text in (f"{name}={value}", f"{name} = '{value}'", f'"{name}": "{value}"', f"-D{name}={value} -Xmx1g"):
        assert value not in masked(f"failed with {text}, so there")
        assert masked(f"failed with {text}, so there").endswith("so there")


@pytest.mark.parametrize(
    "name",
    [
        "fs.s3a.aws.credentials.provider",
        "hadoop.security.credential.provider.path",
        "spark.authenticate.secret.file",
        "fs.s3a.endpoint",
        "fs.azure.account.oauth2.client.id",
        "redis_key_file",
        "spark.sql.shuffle.partitions",
        "tokenizer",
        "n_tokens",
        "key",
    ],
)
def test_names_that_hold_no_secret(name: str) -> None:
    assert not is_secret(name)
    assert masked(f"{name} = some") == f"{name} = some"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://mlflow:hush@db:5432/x", "postgresql://***@db:5432/x"),
        ("postgresql://mlflow:hu/sh@1@db/x", "postgresql://***@db/x"),
        ("redis://:hush@store:6379/0 did not answer", "redis://***@store:6379/0 did not answer"),
        ("https://hush@git/x", "https://***@git/x"),
        ("abfss://lake@shop.dfs.core.windows.net/lte", "abfss://lake@shop.dfs.core.windows.net/lte"),
        ("redis://store:6379/0?password=hush&db=1", "redis://store:6379/0?password=***&db=1"),
        ("https://a.blob/x?sv=2022&sig=hu%2Fsh&se=1", "https://a.blob/x?sv=2022&sig=***&se=1"),
        ("https://s3/x?X-Amz-Signature=hush&X-Amz-Date=1", "https://s3/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("https://s3/x?AWSAccessKeyId=hush", "https://s3/x?AWSAccessKeyId=***"),
        ("jdbc:postgresql://db/x;user=a;password=hush", "jdbc:postgresql://db/x;user=a;password=***"),
        ("AccountName=a;AccountKey=hush==;Suffix=b", "AccountName=a;AccountKey=***;Suffix=b"),
        ("-Dlog=x -Djavax.net.ssl.keyStorePassword=hush -Xss1m", "-Dlog=x -Djavax.net.ssl.keyStorePassword=*** -Xss1m"),
        ("mysql --user a --password hush --port 1", "mysql --user a --password *** --port 1"),
        ("Authorization: Bearer hushhushhush", "Authorization: *** ***"),
        ("no secret at 12:30: 5 rows, a=b", "no secret at 12:30: 5 rows, a=b"),
        ("see http://localhost:5000/#/x and http://h/x", "see http://localhost:5000/#/x and http://h/x"),
    ],
)
def test_what_is_secret_in_a_text(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
