//! A local server that speaks as S3 does: moto, in Python.

use object_store::aws::{AmazonS3, AmazonS3Builder};
use std::{
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

/// The bucket that is there.
const BUCKET: &str = "scope";
const REGION: &str = "us-east-1";
const KEY: &str = "a-key";
const SECRET: &str = "a-secret";

/// Serves on a free port, which it prints, until it is told nothing more. Each line that it is told locks it.
const PROGRAM: &str = r#"
import sys, boto3
from moto import settings
from moto.server import ThreadedMotoServer

bucket, region, key, secret = sys.argv[1:]
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region, aws_access_key_id=key, aws_secret_access_key=secret)
s3.create_bucket(Bucket=bucket)
print(endpoint, flush=True)
for line in sys.stdin:
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    print("locked", flush=True)
server.stop()
"#;

/// A process of its own, with an empty bucket named `scope`; it ends with this value.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    said: BufReader<ChildStdout>,
    endpoint: String,
}

impl Moto {
    /// `temporary` is Cargo's folder for the test, `CARGO_TARGET_TMPDIR`: moto lies beside it.
    ///
    /// # Errors
    /// When it is not there, or does not start.
    pub fn start(temporary: &Path) -> io::Result<Self> {
        let place = temporary.parent().unwrap_or(temporary).join("moto-venv");
        let python = place.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
        if !python.is_file() {
            let reason = format!("there is no {}; `cargo xtask setup` makes it", python.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let mut command = Command::new(python);
        command.args(["-c", PROGRAM, BUCKET, REGION, KEY, SECRET]).env("NO_PROXY", "127.0.0.1");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child?;
        let said = child.stdout.take().ok_or_else(|| io::Error::other("moto has no output"))?;
        let mut moto = Self { child, said: BufReader::new(said), endpoint: String::new() };
        moto.endpoint = moto.listen()?;
        Ok(moto)
    }

    /// What a program must have in its environment to find the server, and to have all rights.
    pub fn variables(&self) -> [(&'static str, &str); 6] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("NO_PROXY", "127.0.0.1"),
        ]
    }

    /// The bucket.
    ///
    /// # Errors
    /// When the library has no connection to give.
    pub fn bucket(&self) -> Result<AmazonS3, object_store::Error> {
        let builder = AmazonS3Builder::new().with_endpoint(&self.endpoint).with_allow_http(true).with_region(REGION);
        builder.with_access_key_id(KEY).with_secret_access_key(SECRET).with_bucket_name(BUCKET).build()
    }

    /// From now on nobody has any rights.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn lock(&mut self) -> io::Result<()> {
        let told = self.child.stdin.as_mut().ok_or_else(|| io::Error::other("moto has no input"))?;
        writeln!(told, "lock")?;
        self.listen().map(drop)
    }

    fn listen(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.said.read_line(&mut line)? {
            0 => Err(io::Error::other("moto ended; `cargo xtask setup` installs it again when its folder is removed")),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
