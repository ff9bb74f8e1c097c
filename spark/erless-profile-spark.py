"""`erless profile` as spark-submit runs it, on EMR, Dataproc or the Spark operator.

    cp erless-*.whl erless.zip
    spark-submit --master yarn --py-files erless.zip erless-profile-spark.py \
        --model m --log s3-mounted/log --out p --counts-out s3a://bucket/counts

The options are those of `erless profile`. Driver and executors need numpy, pyarrow and pydantic;
the driver erless' other dependencies too (docs/scale.md).
"""

import sys

from erless.cli.main import main

if __name__ == "__main__":
    wheel = next((path for path in sys.path if path.endswith(".whl")), None)
    if wheel:  # pyspark.SparkContext.PACKAGE_EXTENSIONS: zip, egg, jar
        sys.exit(
            f"{wheel}: Spark hands no .whl to executors: copy it to erless.zip, a wheel is one"
        )
    sys.argv[1:1] = ["profile", "--engine", "spark"]
    main()
